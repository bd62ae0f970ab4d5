"""A SmolLM3 folder as its makers leave one, but tiny: grouped heads, one block in four without positions,
tied embeddings, a chat template that thinks; and sums in the form of GSM8K."""

import json

import torch
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.tokenizers import save_tokenizer, texts, train_bpe

REAL = {  # what the 3B model's config.json says of its sizes
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "no_rope_layer_interval": 4,
    "max_position_embeddings": 65536,
    "tie_word_embeddings": True,
}
TINY = REAL | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
THINKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking | default(true) %}<think>\n\n</think>\n{% endif %}{% endif %}"
)


def write_sums(folder):
    """train.jsonl and test.jsonl of one and two steps."""
    for name, shift in (("train", 0), ("test", 40)):
        lines = []
        for i in range(shift + 2, shift + 38):
            total, left = i * 3, i * 3 - i % 5
            chain = f"She has {i}*3=<<{i}*3={total}>>{total} nuts."
            if i % 2:
                chain += f"\nLeft are {total}-{i % 5}=<<{total}-{i % 5}={left}>>{left}."
            answer = left if i % 2 else total
            question = f"Ann has {i} bags of 3 nuts and eats {i % 5}. How many are left?"
            lines.append(json.dumps({"question": question, "answer": f"{chain}\n#### {answer}"}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_model(folder, sums, shape=TINY, weights=True, template=THINKS):
    """The model folder; without weights, its configuration and tokenizer alone."""
    data = DataConfig(task="gsm8k", path=str(sums))
    tokenizer = train_bpe(texts(data, build_task(data)), 320)
    markers = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    tokenizer.chat_template = template
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    save_tokenizer(tokenizer, folder)
    if not weights:
        SmolLM3Config(**shape, **ids).save_pretrained(folder)
        return folder
    torch.manual_seed(0)
    shape = SmolLM3Config(**shape | {"vocab_size": len(tokenizer)}, **ids)
    SmolLM3ForCausalLM(shape).save_pretrained(folder)
    return folder
