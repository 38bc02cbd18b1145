"""Tool-call syntaxes: what is written can be read back, and nothing that a model writes can hurt."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym import ConfigError, assistant, call
from agentgym.conformance import HOSTILE
from agentgym.messages import raw_call
from agentgym.syntax import SYNTAXES, get_syntax

TEXTUAL = [name for name in SYNTAXES if name != "structured"]
TOOLS = [{"type": "function", "function": {"name": "lookup", "description": "Look up.", "parameters": {}}}]

plain_text = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=3),
    max_leaves=6,
)
names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda n: n not in ("if", "is", "in", "or", "as", "for"))
arguments = st.dictionaries(names, values, max_size=3)
contents = st.from_regex(r"([A-Za-z0-9 .,]+)?", fullmatch=True).map(str.strip)


@pytest.mark.parametrize("name", TEXTUAL)
@given(content=contents, calls=st.lists(st.tuples(names, arguments), max_size=3))
def test_parsing_what_was_formatted_gives_the_message_back(name, content, calls):
    made = [raw_call(tool, dumped(given), f"call_{i}") for i, (tool, given) in enumerate(calls)]
    message = assistant(content, *made)
    assert get_syntax(name).parse(get_syntax(name).format(message)) == message


def dumped(value):
    import json

    return json.dumps(value, ensure_ascii=False)


def test_hermes_is_spelt_exactly_so():
    spelt = '<tool_call>\n{"name": "lookup", "arguments": {"key": 33}}\n</tool_call>'
    assert get_syntax("hermes").format(assistant("", call("lookup", key=33))) == spelt
    assert get_syntax("hermes").parse(f"Let me see.\n{spelt}\nDone.") == assistant(
        "Let me see.\nDone.", call("lookup", key=33)
    )


def test_xml_is_spelt_exactly_so():
    spelt = "<tool_call>\n<function=lookup>\n<parameter=key>\n33\n</parameter>\n</function>\n</tool_call>"
    assert get_syntax("xml").format(assistant("", call("lookup", key=33))) == spelt
    assert get_syntax("xml").parse(spelt) == assistant("", call("lookup", key=33))
    assert get_syntax("xml").parse("<function=enter><parameter=code>0042</parameter></function>") == assistant(
        "", call("enter", code="0042")
    )


def test_react_is_spelt_exactly_so():
    spelt = 'Action: lookup\nAction Input: {"key": 33}'
    assert get_syntax("react").format(assistant("", call("lookup", key=33))) == spelt
    assert get_syntax("react").parse(f"I look.\n{spelt}") == assistant("I look.", call("lookup", key=33))
    assert get_syntax("react").parse("So it is.\nFinal Answer: 48") == assistant("48", reasoning="So it is.")


def test_code_is_read_and_never_run():
    spelt = "```tool\nlookup(key=33)\n```"
    assert get_syntax("code").format(assistant("", call("lookup", key=33))) == spelt
    assert get_syntax("code").parse(spelt) == assistant("", call("lookup", key=33))
    for body in (
        "__import__('os').abort()",
        "lookup(33)",
        "lookup(key=open('/etc/passwd'))",
        "1 + 1",
        "x = 3",
        "f(a={1,2})",
    ):
        (bad,) = get_syntax("code").parse(f"```tool\n{body}\n```")["tool_calls"]
        assert "error" in bad


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("hermes", '<tool_call>{"name": "lookup", "argum', "cut off: </tool_call> is missing"),
        ("hermes", "<tool_call>{'name': 'lookup'}</tool_call>", "not valid JSON"),
        ("hermes", "<tool_call>[1]</tool_call>", "a call is one JSON object"),
        ("hermes", '<tool_call><tool_call>{"name": "x"}</tool_call></tool_call>', "not valid JSON"),
        ("xml", "<function=lookup><parameter=key>1", "cut off: </function> is missing"),
        ("xml", "<function=lookup><parameter=key>1</function>", "cut off: </parameter> is missing"),
        ("react", "Action: lookup\nkey=33", "`Action Input: {…}` is missing"),
        ("code", "```tool\nlookup(key=", "cut off"),
        ("code", "```tool\nlookup(key=\n```", "not `tool(name=value)`"),
    ],
)
def test_a_malformed_call_carries_its_error(name, text, error):
    message = get_syntax(name).parse(text)
    assert error in message["tool_calls"][0]["error"]


def test_a_good_call_after_a_bad_one_survives():
    text = '<tool_call>oops</tool_call><tool_call>{"name": "lookup", "arguments": {"key": 1}}</tool_call>'
    bad, good = get_syntax("hermes").parse(text)["tool_calls"]
    assert "error" in bad
    assert good == raw_call("lookup", '{"key": 1}', "call_1")


@pytest.mark.parametrize("name", SYNTAXES)
def test_no_text_raises_or_takes_long(name):
    opening = {"hermes": "<tool_call>", "xml": "<function=a><parameter=", "react": "Action:\n", "code": "```tool\n"}
    piece = opening.get(name, "x")
    texts = [piece * (1_000_000 // len(piece)), piece + "[" * 900_000, piece + "(" * 19_000 + "```", "\n" * 1_000_000]
    texts += [case.action for case in HOSTILE if isinstance(case.action, str)]
    start = time.process_time()
    for text in texts:
        get_syntax(name).parse(text)
    assert time.process_time() - start < 5  # about 1 s; anything quadratic takes hours


@pytest.mark.parametrize("name", SYNTAXES)
@given(text=st.text(st.characters()))
def test_any_text_is_a_message(name, text):
    message = get_syntax(name).parse(text)
    assert message["role"] == "assistant"
    assert isinstance(get_syntax(name).format(message), str)


def test_instructions_name_every_tool_and_none_where_there_are_none():
    for name in TEXTUAL:
        assert '"lookup"' in get_syntax(name).instructions(TOOLS)
        assert get_syntax(name).instructions([]) == ""


def test_an_example_in_the_instructions_can_be_read():
    for name in TEXTUAL:
        parsed = get_syntax(name).parse(get_syntax(name).instructions(TOOLS))
        assert parsed["tool_calls"][0]["function"]["name"] == "tool"
        assert "error" not in parsed["tool_calls"][0]


def test_an_unknown_syntax_names_the_nearest():
    with pytest.raises(ConfigError, match="no tool-call syntax 'hermse'; did you mean 'hermes'"):
        get_syntax("hermse")
