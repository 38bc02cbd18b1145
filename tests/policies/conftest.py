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

# As above; a system message with a date is always there, the first user message lists the tools, results are JSON.
LLAMA31 = """
{{- bos_token }}
{%- set opens = messages[0].role == 'system' %}
{%- set told = messages[1:] if opens else messages %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: 1 January 2025\\n\\n' }}
{{- (messages[0].content | trim if opens else '') + '<|eot_id|>' }}
{%- for m in told %}
    {%- set role = 'ipython' if m.role == 'tool' else m.role %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
    {%- if tools and loop.first %}
        {{- 'You may call:\\n' }}{%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
    {%- endif %}
    {{- (m.content | tojson if m.role == 'tool' else m.content | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# A system message lists the tools; results have a role of their own, several in one turn.
HERMES = """
{%- if tools %}
    {{- '<|im_start|>system\\nYou may call: <tools>' }}
    {%- for tool in tools %}{{- ' ' }}{{- tool.function | tojson }}{%- endfor %}
    {{- ' </tools><|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>tool\\n' }}{%- endif %}
        {{- '<tool_response>\\n' + m.content + '\\n</tool_response>' + ('' if loop.last else '\\n') }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# As MISTRAL, and strict: user and assistant in turn, and results only for calls whose ids it knows.
MISTRAL3 = (
    """
{%- set ns = namespace(index=0) %}
{%- for m in messages %}
    {%- if m.role in ('user', 'assistant') %}
        {%- if (m.role == 'user') != (ns.index % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- elif m.role == 'tool' and m.tool_call_id | length != 9 %}
        {{- raise_exception('the id of a call has 9 characters') }}
    {%- endif %}
{%- endfor %}
"""
    + MISTRAL
)

# No system role; the assistant is the model; user and model in turn, and nobody else; what closes a turn is not eos.
GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('no system role') }}{%- endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

# System text stands bare behind the first token; a reply is asked to think, and its thought is cut from history; behind
# tool outputs it goes on without a header. What separates turns is not marked as special.
DEEPSEEK = """
{{- bos_token }}
{%- for m in messages if m.role == 'system' %}{{- m.content }}{%- endfor %}
{%- set ns = namespace(goes_on=false) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- '<｜User｜>' + m.content }}
    {%- elif m.role == 'assistant' %}
        {{- ('' if ns.goes_on else '<｜Assistant｜>') + m.content.split('</think>')[-1] + eos_token }}
    {%- elif m.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{- '<｜tool▁outputs▁begin｜>' }}{%- endif %}
        {{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<｜tool▁outputs▁end｜>' }}{%- endif %}
    {%- endif %}
    {%- set ns.goes_on = m.role == 'tool' %}
{%- endfor %}
{%- if add_generation_prompt and not ns.goes_on %}{{- '<｜Assistant｜><think>\\n' }}{%- endif %}
"""

# A space stands before the token that closes a turn, as before the reply.
LLAMA2 = """
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- ' ' + m.content | trim + ' ' + eos_token }}
    {%- else %}
        {{- bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}
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
TURNS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
SENTENCE = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
BARS = (
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
)
THINK = ("<think>", "</think>")
OURS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
KINDS: dict[str, tuple[str, tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
    # template, special tokens, their roles, tokens that are added but not special
    "scratch": (SCRATCH, OURS, {"eos_token": "<|end|>", "pad_token": "<|pad|>"}, ()),
    "chatml": (CHATML, IM, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ()),
    "qwen3": (QWEN3, IM, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, THINK),
    "llama3": (LLAMA3, LLAMA, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, ()),
    "mistral": (MISTRAL, INST, {"bos_token": "<s>", "eos_token": "</s>"}, ()),
    "llama31": (LLAMA31, LLAMA, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, ()),
    "llama2": (LLAMA2, INST, {"bos_token": "<s>", "eos_token": "</s>"}, ()),
    "hermes": (HERMES, IM, {"eos_token": "<|im_end|>"}, ("<tool_response>", "<tool_call>")),
    "mistral3": (MISTRAL3, INST, {"bos_token": "<s>", "eos_token": "</s>"}, ()),
    "gemma": (GEMMA, TURNS, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}, ()),
    "deepseek": (DEEPSEEK, SENTENCE, {"bos_token": SENTENCE[0], "eos_token": SENTENCE[1]}, (*BARS, *THINK)),
    "late_tools": (LATE_TOOLS, IM, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ()),
    "counting": (COUNTING, IM, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ()),
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PreTrainedTokenizerBase]:
    """Kind -> its tokenizer. As in the field, most special tokens are known to the vocabulary only, and not among the
    named ones (`all_special_tokens`). "kind+first" puts a space before whatever text comes first, as Mistral's does;
    "kind+always" behind special tokens too, as that of Llama 2."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from agentgym.engines.causal import load_tokenizer

    made: dict[str, Any] = {}

    def by_bytes(bpe: Tokenizer) -> list[str]:
        bpe.decoder = decoders.ByteLevel()
        words = pre_tokenizers.Split(Regex(WORDS), "isolated")
        bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        return pre_tokenizers.ByteLevel.alphabet()

    def by_spaces(bpe: Tokenizer, scheme: str) -> list[str]:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        bpe.decoder = decoders.Sequence(spaces)
        return [*map(chr, range(32, 127)), *"\n\tï你好的🙂"]

    def built(name: str) -> PreTrainedTokenizerBase:
        if name in made:
            return made[name]
        kind, _, scheme = name.partition("+")
        template, special, named, added = KINDS[kind]
        bpe = Tokenizer(models.BPE(unk_token=special[0] if scheme else None))
        alphabet = by_spaces(bpe, scheme) if scheme else by_bytes(bpe)
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        )
        bpe.train_from_iterator(TEXTS * 4, trainer)
        bpe.add_tokens([AddedToken(token, special=False) for token in added])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
        tokenizer.chat_template = template
        folder = tmp_path_factory.mktemp("tokenizers") / name
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        made[name] = load_tokenizer(str(folder))
        return made[name]

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
