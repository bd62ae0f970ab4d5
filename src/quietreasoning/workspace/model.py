"""WorkspaceModel: `read` advances all streams by a run of chunks; training, prefill and decoding all call it.

Shapes: B rows and T positions of the input, R streams, N tokens of a column, D width, K slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quietreasoning.config import UserError
from quietreasoning.losses.halting import rate_for_mean
from quietreasoning.nn.product_key_memory import ProductKeyReader, ProductKeyTable
from quietreasoning.nn.router import Plan, Router, neutral
from quietreasoning.nn.slots import SlotUpdate
from quietreasoning.nn.ssm import SSMExpert
from quietreasoning.nn.trunk import Block, SlotReader
from quietreasoning.workspace.cache import State, WorkspaceCache
from quietreasoning.workspace.columns import Rotary, gather, join, runs
from quietreasoning.workspace.config import WorkspaceConfig
from quietreasoning.workspace.features import Switches, WorkspacePreTrained
from quietreasoning.workspace.layout import Layout, lay_out
from quietreasoning.workspace.reads import Reads
from quietreasoning.workspace.trace import Trace, WorkspaceOutput


class WorkspaceModel(Reads, Switches, WorkspacePreTrained):
    """The model without its head. The head reads the token stream alone, never the slots."""

    def __init__(self, config: WorkspaceConfig):
        super().__init__(config)
        c, d = config, config.hidden_size
        self.embed_tokens = nn.Embedding(c.vocab_size, d)
        self.blocks = nn.ModuleList(
            Block(
                d,
                c.num_attention_heads,
                c.num_key_value_heads,
                c.head_dim,
                c.intermediate_size,
                eps=c.rms_norm_eps,
                bias=c.attention_bias,
                out_bias=c.attention_out_bias,
                qk_norm=c.qk_norm,
                rotary=number not in c.no_rope_layers,
            )
            for number in range(1, c.num_hidden_layers + 1)
        )
        self.norm = nn.RMSNorm(d, eps=c.rms_norm_eps)
        for block in self.blocks if c.adapters else ():
            block.add_adapters(
                c.adapters, c.adapter_rank, c.adapter_alpha, ia3=c.ia3, fusion=c.adapter_fusion
            )
        self.workspace = SlotUpdate(
            c.slots,
            c.slot_width,
            d,
            c.slot_heads,
            c.inner_steps,
            threshold=c.halting_threshold,
            epsilon=c.halting_epsilon,
            first_stop=rate_for_mean(c.mean_steps, c.inner_steps),
        )
        self.readers = nn.ModuleDict(
            {str(b): SlotReader(d, c.slot_width, c.slot_heads, c.rms_norm_eps) for b in c.write_blocks}
        )
        self.router = Router(
            c.slot_width,
            c.router_width,
            experts=len(c.ssm_blocks),
            adapters=c.adapters,
            active=c.adapters_active,
            episodic=c.episodic_choices,
            knn_max=c.knn_max,
            threshold=c.skip_threshold,
        )
        ssm = (c.ssm_inner, c.ssm_state, c.ssm_head_dim, c.ssm_conv, c.ssm_chunk, c.rms_norm_eps)
        self.experts = nn.ModuleDict({str(b): SSMExpert(d, *ssm) for b in c.ssm_blocks})
        self.table = ProductKeyTable(
            c.pkm_slots, c.pkm_value_dim, c.pkm_heads, c.pkm_key_dim, c.pkm_topk, int8=c.pkm_int8
        )
        for expert in self.experts.values():
            nn.init.zeros_(expert.out.weight)
        # experts and memory start silent: switching them on changes nothing until they have learned
        self.memory = nn.ModuleDict(
            {str(b): ProductKeyReader(d, c.pkm_heads, c.pkm_key_dim, c.pkm_value_dim) for b in c.pkm_blocks}
        )
        self.register_buffer("temperature", torch.tensor(float(c.pkm_temperature)))  # training anneals it
        self.gradient_checkpointing = False
        self.rotary = Rotary(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value

    # the forward pass

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        starts: Tensor | None = None,
        document_ids: Tensor | None = None,
        past_key_values: WorkspaceCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        trace: bool = False,
        return_dict: bool = True,
    ) -> WorkspaceOutput:
        """Hidden states [B, T, D]; zero where the mask is.

        attention_mask [B, T] (or [B, S + T] with a cache): 0 is padding, anywhere. starts [B, T]: tokens at
        which a chunk begins, such as the first after a prompt. document_ids [B, T]: packed documents of
        a row; each is computed as if it were alone. Positions follow from the mask.
        """
        if not return_dict:
            raise UserError("return_dict=False: a workspace model returns its outputs by name; leave it out")
        x_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        rows, width = x_BTD.shape[:2]
        every_BT = torch.ones(rows, width, dtype=torch.bool, device=x_BTD.device)
        valid_BT = every_BT if attention_mask is None else attention_mask[:, -width:].bool()
        cache = None if past_key_values is None else WorkspaceCache.given(past_key_values)
        cached = self.config.use_cache if use_cache is None else use_cache
        if cache is None and cached and not self.training:
            cache = WorkspaceCache()
        state = cache.state if cache is not None else None
        if document_ids is not None and cache is not None:
            raise UserError(
                "document_ids cannot be cached: packed documents are read whole. Pass use_cache=False."
            )
        if cache is not None and state is None:
            state = self.begin(rows, x_BTD)
        layout = self._lay_out(valid_BT, starts, document_ids, state)
        if state is None:
            state = self.begin(len(layout.row_R), x_BTD)
        counts = self.training and torch.is_grad_enabled() and "pkm" in self.plan_parts()
        record = Trace(layout.row_R, layout.columns) if trace or counts else None
        flat_ND = x_BTD.flatten(0, 1)
        parts, outs, number = runs(layout.columns), [], 0
        for run in parts:
            states, state = self.read(state.first(len(run[0].fresh_R)), run, flat_ND, record, number)
            outs.append(states if output_hidden_states else states[-1:])
            number += len(run)
        if not outs:
            raise UserError("attention_mask holds no token at all; give every call at least one")
        if counts:  # once a forward: ranks add up what they count, and their rows differ in chunks
            self.table.count(*record.hits())
            for block, reader in self.memory.items():
                reader.whiten.observe(*record.asked(int(block)))
        hidden_states = gather([join(run) for run in parts], outs, rows, width)
        if cache is not None:
            state.length_R, state.filled_R = layout.length_R, layout.filled_R
            cache.state = state
        return WorkspaceOutput(
            last_hidden_state=hidden_states[-1],
            past_key_values=cache,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            trace=record if trace else None,
        )

    def _lay_out(
        self, valid_BT: Tensor, starts_BT: Tensor | None, documents_BT: Tensor | None, state: State | None
    ) -> Layout:
        return lay_out(
            valid_BT,
            self.config.chunk_size if self.config.has("workspace") else None,
            starts_BT=starts_BT,
            documents_BT=documents_BT,
            length_B=None if state is None else state.length_R,
            filled_B=None if state is None else state.filled_R,
        )

    def begin(self, rows: int, like: Tensor) -> State:
        """Before the first token: the learned slots and the plan they lead to."""
        none = torch.zeros(rows, dtype=torch.long, device=like.device)
        state = State(
            length_R=none,
            filled_R=none.clone(),
            valid_RS=torch.zeros(rows, 0, dtype=torch.bool, device=like.device),
            past=((),) * len(self.blocks),
            plan=neutral(rows, self.plan_parts(), self.router, like.device),
        )
        if self.config.has("ssm"):
            state.ssm = tuple(e.empty_state(rows, like.device, like.dtype) for e in self.experts.values())
        if self.config.has("workspace"):
            slots = self.workspace.start(rows)
            state.slots_RKD, state.plan = slots, self.plan(slots)
            state.open_RND = like.new_zeros(rows, 0, self.config.hidden_size)
            state.open_RN = torch.zeros(rows, 0, dtype=torch.bool, device=like.device)
        return state

    def plan(self, slots_RKD: Tensor) -> Plan:
        return self.router(slots_RKD.mean(1), self.plan_parts())
