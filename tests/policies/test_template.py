"""The rules of chat templates: published shapes keep them, broken ones are named with what mends them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from agentgym.policies.template import Finding, check_template
from agentgym.policies.transcript import ChatFormat

IM = "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
PROMPT = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
LOOP = "{%- for m in messages %}" + IM + "{%- endfor %}"


@pytest.fixture(scope="module")
def check(tokenizer_of: Callable[[str], Any]) -> Callable[..., dict[str, Finding]]:
    """Findings by rule: of a kind of tokenizer, with its own template or another."""
    kept: dict[str, dict[str, Finding]] = {}

    def checked(kind: str, template: str | None = None) -> dict[str, Finding]:
        if template is None and kind in kept:
            return kept[kind]
        tokenizer = copy.deepcopy(tokenizer_of(kind))
        tokenizer.chat_template = tokenizer.chat_template if template is None else template
        found = {finding.rule: finding for finding in check_template(tokenizer)}
        return kept.setdefault(kind, found) if template is None else found

    return checked


SPACED = ["chatml+first", "chatml+always", "qwen3+first", "llama2+always", "mistral3+first", "gemma+first"]
PUBLISHED = ["chatml", "hermes", "qwen3", "llama3", "llama31", "llama2", "mistral", "mistral3", "gemma", "deepseek"]


@pytest.mark.parametrize("kind", [*PUBLISHED, *SPACED, "scratch", "late_tools", "counting"])
def test_a_published_shape_keeps_every_rule(check, kind):
    found = check(kind)
    assert len(found) == 15
    assert [finding.rule for finding in found.values() if not finding.passed and finding.required] == []
    assert all(bool(finding.fix) != finding.passed for finding in found.values())


@pytest.mark.parametrize(
    ("kind", "reply", "tool_call", "thought_then_result", "thought_then_user"),
    [
        ("chatml", "extend", "extend", "extend", "extend"),
        ("qwen3", "extend", "extend", "extend", "fork"),  # a user message takes the thoughts before it away
        ("llama31", "extend", "extend", "extend", "extend"),
        ("llama2", "realign", "realign", "realign", "realign"),  # spaces around each reply
        ("gemma", "extend", "extend", "extend", "extend"),
        ("hermes", "extend", "fork", "fork", "extend"),  # the newline behind a result depends on what follows
        ("mistral", "fork", "realign", "realign", "fork"),  # tools and system text move to the last user message
        ("mistral3", "fork", "fork", "fork", "fork"),  # where results are the user's words, all of them move it
        ("deepseek", "fork", "extend", "realign", "fork"),  # a prompt that opens a thought, which history never has
    ],
)
def test_what_each_turn_does_is_told(check, kind, reply, tool_call, thought_then_result, thought_then_user):
    finding = check(kind)["what each turn does"]
    assert f"reply: {reply}; tool call: {tool_call}; thought, then a result: {thought_then_result}; " in finding.seen
    assert f"thought, then the user: {thought_then_user}; " in finding.seen
    assert finding.passed is ("fork" not in (reply, tool_call))
    assert not finding.required  # it costs time and memory, and is right


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("llama31", "system message: shown; tools: listed by the template; results: shown"),
        ("gemma", "in the first user message; tools: told in the system message (hermes); results: told in the user's"),
        ("mistral3", "system message: shown; tools: listed by the template; results: told in the user's words"),
        ("deepseek", "system message: shown; tools: told in the system message (hermes); results: shown"),
    ],
)
def test_who_tells_of_tools_and_results_is_told(check, kind, seen):
    assert seen in check(kind)["what is shown"].seen


def test_tools_that_a_model_was_taught_to_know_are_told_as_hidden(tokenizer_of):
    found = check_template(tokenizer_of("scratch"), ChatFormat("react", "hidden"))
    assert "tools: hidden" in next(finding.seen for finding in found if finding.rule == "what is shown")


@pytest.mark.parametrize(
    ("kind", "seen"),
    [("gemma", "<end_of_turn> (4), <eos> (1)"), ("llama31", "<|eot_id|> (4)"), ("mistral3", "</s> (1)")],
)
def test_the_stop_tokens_are_told(check, kind, seen):
    assert check(kind)["stop tokens"].seen == seen


def test_a_prompt_that_opens_a_thought_is_told_and_allowed(check):
    assert "'<think>\\n'" in check("deepseek")["prompt as in history"].seen
    assert "a reply begins with ' '" in check("mistral3")["prompt as in history"].seen


# -- broken by a user --------------------------------------------------------------------------------------------------

BROKEN = {  # template -> the rule that names it, a part of what was seen, a part of the fix
    "": ("a template", "the tokenizer has none", "tokenizer.chat_template"),
    "{% for m in messages %}": ("renders chats", "TemplateSyntaxError", "mend the line that raises"),
    "{{ raise_exception('no') }}": ("renders chats", "no", "mend the line that raises"),
    "{{ 1 // 0 }}": ("renders chats", "ZeroDivisionError", "mend the line that raises"),
    "{%- for m in messages if m.role == 'user' %}" + IM + "{%- endfor %}": (
        "every message shown", "message 2 of 2 (assistant) is left out", "loop over all of `messages`",
    ),
    "{%- for m in messages[:-1] %}" + IM + "{%- endfor %}": (
        "every message shown", "message 1 of 1 (user) is left out", "loop over all of `messages`",
    ),
    LOOP + "{{- messages[0].content }}": ("every message shown", "stands there 2 times", "once for each"),
    "{%- for m in messages %}{{- m.role + ': ' + m.content + '\\n' }}{%- endfor %}": (
        "end of a turn", "followed by '\\n', in which there is no token", "write eos_token",
    ),
    "{%- for m in messages %}{{- m.role + ': ' + m.content + ' END <|im_end|>' }}{%- endfor %}": (
        "end of a turn", "' END <|im_end|>', of which '<|im_end|>' is sampled before the rest", "right behind",
    ),
    LOOP + PROMPT.replace("\\n", "\\n\\n"): (
        "prompt as in history", "the prompt ends in '_end|>\\n<|im_start|>assistant\\n\\n'", "exactly",
    ),
    LOOP + PROMPT.replace("\\n", ""): (
        "prompt as in history", "the prompt ends in 'im_end|>\\n<|im_start|>assistant',", "exactly",
    ),
    LOOP.replace("\\n' + m", "\\n\\n' + m") + PROMPT: (
        "prompt as in history", "assistant\\n\\n' stands before a reply in history", "exactly",
    ),
    LOOP: ("prompt as in history", "'m_end|>\\n<|im_start|>assistant\\n' stands before a reply", "exactly"),
    LOOP.replace("messages %}", "messages[-12:] %}", 1) + PROMPT: (
        "history stays or forks", "where the chat rendered as a whole has", "the same wherever it stands",
    ),
}  # fmt: skip


@pytest.mark.parametrize("template", BROKEN)
def test_a_broken_template_is_named_with_what_mends_it(check, template):
    name, seen, fix = BROKEN[template]
    finding = check("chatml", template)[name]
    assert not finding.passed
    assert finding.required
    assert seen in finding.seen
    assert fix in finding.fix


def test_where_the_template_itself_is_broken_no_rule_of_the_record_is_tried(check):
    found = check("chatml", "{{ raise_exception('no') }}")
    assert list(found) == ["a template", "renders chats", "every message shown", "end of a turn"]


def test_what_is_odd_is_told_and_is_not_required(check):
    doubled = check("chatml", LOOP.replace("<|im_end|>\\n", "<|im_end|>\\n\\n") + PROMPT)["newlines"]
    dated = check("chatml", "{{- strftime_now('%Y') }}" + LOOP + PROMPT)["the same every day"]
    assert (doubled.passed, doubled.required) == (dated.passed, dated.required) == (False, False)
    assert doubled.seen == "'\\n\\n' behind the end of a turn"
    assert "write a fixed date" in dated.fix
