"""How the page looks: light, narrow enough to read, printable."""

CSS = """
:root { --ink: #1f2328; --soft: #59636e; --line: #d9dee3; --wash: #f6f8fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  color: var(--ink); background: #fff; max-width: 1080px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 2px; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 26px 0 6px; }
p { margin: 6px 0; }
.soft, figcaption, caption { color: var(--soft); font-size: 13px; }
nav a { margin-right: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { background: var(--wash); padding: 1px 4px; border-radius: 3px; overflow-wrap: anywhere; }
pre { background: var(--wash); padding: 8px 10px; border-radius: 4px; margin: 4px 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 10px 0; width: 100%; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: 6px; }
th, td { padding: 4px 10px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eef1f4; }
th { font-weight: 600; font-size: 13px; color: var(--soft); border-bottom: 1px solid var(--line);
  vertical-align: bottom; }
td.figure, th.figure { text-align: right; white-space: nowrap; }
tr.own td { border-top: 1px solid var(--line); }
tr.faint td { color: var(--soft); }
tr.faint td:first-child { padding-left: 16px; }
td.bar { width: 210px; padding-top: 8px; }
td.bar svg { display: block; width: 200px; height: 14px; }
figure { margin: 14px 0 22px; }
figure img { max-width: 100%; height: auto; display: block; }
.box { border: 1px solid var(--line); border-left: 4px solid var(--accent); border-radius: 4px;
  padding: 10px 16px; margin: 16px 0; background: var(--wash); }
.box h3 { margin-top: 6px; }
.box ul { margin: 4px 0 8px; padding-left: 20px; }
tr.own td:first-child { font-weight: 600; }
table.samples td:first-child { width: 140px; }
table.samples td:last-child { width: 80px; }
table.tests td { white-space: nowrap; }
.absent { border: 1px dashed var(--line); border-radius: 4px; padding: 8px 12px; color: var(--soft);
  margin: 10px 0; }
.right { color: #00684b; } .wrong { color: #a8480b; }
details { margin: 8px 0; } summary { cursor: pointer; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure { break-inside: avoid; } }
"""
