"""A small causal LM and its tokenizer from nothing: where no model can be downloaded, or none is wanted.

Owns the shape, the vocabulary and the chat template of models born here. They are ordinary Hugging Face models:
`save_pretrained` and `AutoModelForCausalLM` work as with any other."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from agentgym.errors import ConfigError

ROLES = ("system", "user", "assistant", "tool")
END = "<|end|>"
PAD = "<|pad|>"
SPECIAL = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
CHAT_TEMPLATE = (
    "{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class ScratchConfig:
    """Shape of a model that starts from nothing."""

    vocabulary: int = 1200
    """Tokens at most; merges are learned from the demonstrations."""
    width: int = 96
    """Size of the hidden state."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 4
    """Attention heads; they divide the width."""
    rope_theta: float = 100.0
    """Base of the rotary positions: small ones tell near positions apart sooner, large ones carry further."""
    window: int = 4096
    """Longest history in tokens."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "rope_theta", "window"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(f"width {self.width} over {self.heads} heads: each head needs an even, whole size")


def scratch_tokenizer(texts: Iterable[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from `texts`. Digits are cut into pairs from the left and never merge with letters, so
    that a number has one spelling in tokens; other text merges across spaces, so that a set phrase is one token."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the trainer panics where it cannot start threads
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,  # the first ids, in this order
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, additional_special_tokens=SPECIAL[2:]
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def scratch_model(tokenizer: PreTrainedTokenizerFast, config: ScratchConfig, *, seed: int) -> PreTrainedModel:
    """A Llama of that shape with random weights that depend on `seed` only."""
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=2 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.window,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(PAD),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(shape)
