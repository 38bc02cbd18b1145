"""Tokenizers with the chat templates that are met in the field, each trained here and loaded from its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from agentgym.policies.render import Renderer

TEXTS = (
    "Start at 33. Follow the links to the first red key and say its number. You are a careful agent.",
    "system user assistant tool The note says: the code is 7404. A red light, a blue light, and no light at all.",
    "hello there, what is it? It is a key. Then look it up, and say what you have seen.\n\n  fn(x)\n",
)

SCRATCH = (
    "{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)

CHATML = """
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Thoughts of replies before the last user message are dropped; the last message shows a thought even if it has none;
# tool results are the user's, several in one block; the tools are listed in the system message.
QWEN3 = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_user=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last_user = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set thought, said = '', m.content %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_user and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' + said.lstrip('\\n') }}
        {%- else %}
            {{- said }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# Every content is trimmed; the chat opens with a token of its own; a tool result has another role's name.
LLAMA3 = """
{{- bos_token }}
{%- for m in messages %}
    {%- set role = 'ipython' if m.role == 'tool' else m.role %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# No generation prompt; a reply gets a space before it; system text and tools stand in the *last* user message.
MISTRAL = """
{{- bos_token }}
{%- set ns = namespace(last_user=-1) %}
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last_user = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if tools and loop.index0 == ns.last_user %}
            {{- '[AVAILABLE_TOOLS] ' }}{{- tools | tojson }}{{- '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' }}
        {%- if system and loop.index0 == ns.last_user %}{{- system + '\\n\\n' }}{%- endif %}
        {{- m.content + '[/INST]' }}
    {%- elif m.role == 'assistant' %}
        {{- ' ' + m.content | trim + eos_token }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"name": "' + (m.name or '') + '", "content": "' + m.content + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""

# Says how many messages there are: what went before changes with every turn, and keeps its length.
COUNTING = "<|im_start|>{{ '%03d' | format(messages | length) }}\n" + CHATML

# The tools stand before the last user message; without tools nothing ever changes.
LATE_TOOLS = """
{%- set ns = namespace(last_user=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last_user = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if tools and loop.index0 == ns.last_user %}
        {{- '<|im_start|>tools\\n' }}{{- tools | tojson }}{{- '<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

WORDS = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as Qwen and Llama split
)
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
INST = (
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
OURS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
KINDS: dict[str, tuple[str, tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
    # template, special tokens, their roles, tokens that are added but not special
    "scratch": (SCRATCH, OURS, {"eos_token": "<|end|>", "pad_token": "<|pad|>"}, ()),
    "chatml": (CHATML, IM, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ()),
    "qwen3": (QWEN3, IM, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ("<think>", "</think>")),
    "llama3": (LLAMA3, LLAMA, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, ()),
    "mistral": (MISTRAL, INST, {"bos_token": "<s>", "eos_token": "</s>"}, ()),
    "late_tools": (LATE_TOOLS, IM, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ()),
    "counting": (COUNTING, IM, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ()),
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PreTrainedTokenizerBase]:
    """Kind -> its tokenizer. As in the field, most special tokens are known to the vocabulary only, and not among the
    named ones (`all_special_tokens`)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from agentgym.engines.causal import load_tokenizer

    made: dict[str, Any] = {}

    def built(kind: str) -> PreTrainedTokenizerBase:
        if kind in made:
            return made[kind]
        template, special, named, added = KINDS[kind]
        bpe = Tokenizer(models.BPE())
        bpe.decoder = decoders.ByteLevel()
        words = pre_tokenizers.Split(Regex(WORDS), "isolated")
        bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(TEXTS * 4, trainer)
        bpe.add_tokens([AddedToken(token, special=False) for token in added])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
        tokenizer.chat_template = template
        folder = tmp_path_factory.mktemp("tokenizers") / kind
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        made[kind] = load_tokenizer(str(folder))
        return made[kind]

    return built


@pytest.fixture(scope="session")
def renderer_of(tokenizer_of: Callable[[str], PreTrainedTokenizerBase]) -> Callable[[str], Renderer]:
    from agentgym.policies.render import Renderer

    made: dict[str, Renderer] = {}

    def built(kind: str) -> Renderer:
        if kind not in made:
            made[kind] = Renderer(tokenizer_of(kind))
        return made[kind]

    return built
