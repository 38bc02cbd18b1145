"""Does a chat template keep what token-exact records rest on? The rules behind `agentgym doctor --template`.

Owns the rules and what each saw, of one tokenizer: no model, no environment. What is made of a template is render.py's
business; printing the findings is the command line's."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from agentgym.messages import Message, assistant, call, system, tool_result, user
from agentgym.policies.rehearsal import Broken, Rehearsal, num_shared
from agentgym.policies.render import TRIED_TOOL, Outcome, Renderer
from agentgym.policies.transcript import ChatFormat
from agentgym.syntax import get_syntax

NUM_TURNS = (40, *(6,) * 23)  # of each random chat
WORDS = ("start", "the key is 33", "naïve", "你好", "say\nit", "x  y", '{"k": [1, 2]}', "🙂", " so ", "\tend\n", "1<2")
RESULTS = (" 33 blue", "33", "\tsaid", "", " ", "的", "[", "<|", "</think", "\n\n", "a red light.\n")
THOUGHT = "<think>\nlook it up\n</think>\n\n"
LETTERS = "yzw"  # occur in no template
SEE_ABOVE = "mend what is broken above"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule saw. A template that breaks a required rule does not train; one that breaks another costs time."""

    rule: str
    passed: bool
    seen: str
    fix: str  # empty where it passed
    required: bool


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    fix: str
    look: Callable[[Subject], str]  # what it saw; raises Broken
    required: bool
    first: bool  # asks the template alone; no other rule is tried where one of these is broken


RULES: list[Rule] = []


def rule(name: str, fix: str, *, required: bool = True, first: bool = False) -> Callable:
    def keep(look: Callable[[Subject], str]) -> Callable[[Subject], str]:
        RULES.append(Rule(name, fix, look, required, first))
        return look

    return keep


def check_template(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat | None = None) -> list[Finding]:
    """Every rule, in order; the first ones only, where one of those is broken. Whatever a template raises is a
    finding. `chat` is how the model speaks (ChatFormat.load(folder))."""
    subject = Subject(tokenizer, chat or ChatFormat())
    findings = [_finding(rule, subject) for rule in RULES if rule.first]
    if all(finding.passed for finding in findings):
        findings += [_finding(rule, subject) for rule in RULES if not rule.first]
    return findings


def _finding(rule: Rule, subject: Subject) -> Finding:
    try:
        return Finding(rule.name, True, rule.look(subject), "", rule.required)
    except Broken as error:
        seen = str(error)
    except Exception as error:  # whatever somebody's template raises is a breach of the rule, told as such
        seen = f"{type(error).__name__}: {error}"[:1000]
    return Finding(rule.name, False, seen, rule.fix, rule.required)


class Subject:
    """The template under check."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.syntax = get_syntax(chat.syntax)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.tokenizer)

    @cached_property
    def call(self) -> str:
        """A tool call as this model spells it."""
        return self.syntax.format(assistant("", call("t", key=33)))

    def text(self, messages: Sequence[Message], *, prompt: bool = False, tools: list[dict] | None = None) -> str:
        """The template's own rendering."""
        render: Any = self.tokenizer.apply_chat_template
        return render(list(messages), tools=tools, tokenize=False, add_generation_prompt=prompt)

    def chat_of(self, tools: list[dict] | None = None) -> Rehearsal:
        return Rehearsal(self.renderer, self.chat, tools)

    @cached_property
    def chats(self) -> list[Rehearsal]:
        """Random chats, played to their end. Raises Broken where one does not go on as the template would."""
        return [self._played(random.Random(index), num_turns) for index, num_turns in enumerate(NUM_TURNS)]

    def _played(self, chance: random.Random, num_turns: int) -> Rehearsal:
        special = [self.renderer.token(index) for index in sorted(self.renderer.special_ids)[:50]]

        def words() -> str:
            return chance.choice(WORDS) + (chance.choice(special) if chance.random() < 0.2 else "")

        chat = self.chat_of([TRIED_TOOL] if chance.random() < 0.5 else None)
        chat.observe(*([system(words())] if chance.random() < 0.5 else []), user(words()))
        for _ in range(num_turns):
            thought = THOUGHT if chance.random() < 0.4 else ""
            chat.reply(thought + (self.call if chance.random() < 0.4 else words()), cut=chance.random() < 0.1)
            results = [tool_result(call("t"), words()) for _ in range(chance.choice((0, 0, 1, 1, 2)))]
            chat.observe(*(results or [user(words())]))
        return chat


# -- what the template alone shows -------------------------------------------------------------------------------------


@rule("a template", "use an instruction-tuned model, or set tokenizer.chat_template and save it", first=True)
def _is_there(subject: Subject) -> str:
    if not subject.tokenizer.chat_template:
        raise Broken("the tokenizer has none")
    return f"{len(str(subject.tokenizer.chat_template)):,} characters"


@rule("renders chats", "mend the line that raises: user and assistant in turn are what every chat has", first=True)
def _renders(subject: Subject) -> str:
    chat = [user("x"), assistant("y"), user("x"), assistant(subject.call), user("x")]
    for length in range(1, len(chat) + 1):
        subject.text(chat[:length], prompt=length % 2 == 1)
    return "user and assistant in turn, calls of tools among them"


@rule(
    "every message shown",
    "loop over all of `messages`, and write `m.content` once for each, whatever its role and place",
    first=True,
)
def _shows_all(subject: Subject) -> str:
    chat = [user("1zwv"), assistant("2zwv"), user("3zwv"), assistant("4zwv"), user("5zwv"), assistant("6zwv")]
    for length in range(1, len(chat) + 1):
        text = subject.text(chat[:length], prompt=length % 2 == 1)
        for message in chat[:length]:
            if (count := text.count(message["content"])) != 1:
                place = f"message {message['content'][0]} of {length} ({message['role']})"
                raise Broken(f"{place} {'is left out' if not count else f'stands there {count} times'}")
    return f"{len(chat)} of {len(chat)}"


@rule("end of a turn", "write eos_token, or another special token, right behind every assistant message", first=True)
def _ends(subject: Subject) -> str:
    text = subject.text([user("x"), assistant(LETTERS)])
    _, shown, closing = text.rpartition(LETTERS)
    if not shown:
        raise Broken("no reply is shown")
    added = sorted((str(token) for token in subject.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    places = {name: closing.index(name) for name in added if name and name in closing and not name.isspace()}
    if not places:
        raise Broken(f"a reply is followed by {closing!r}, in which there is no token that could stop it")
    first = min(places, key=lambda name: (places[name], -len(name)))
    if closing[: places[first]].strip():
        raise Broken(f"a reply is followed by {closing!r}, of which {first!r} is sampled before the rest is written")
    return f"a reply is followed by {closing!r}"


# -- what is recorded --------------------------------------------------------------------------------------------------


@rule(
    "prompt as in history",
    "let `{%- if add_generation_prompt %}` write exactly what stands before the text of an assistant message",
)
def _prompts(subject: Subject) -> str:
    prompt = subject.text([user("x")], prompt=True)
    texts = [subject.text([user("x"), assistant(LETTERS), *more]) for more in ((), (user("x"),))]
    leads = [text[: text.index(LETTERS)] for text in texts]
    if prompt in leads:
        return f"…{prompt[-30:]!r}"
    shared = num_shared(prompt, leads[1])
    added, lacking = prompt[shared:], leads[1][shared:]
    if not added and _puts_back(subject, lacking, texts[1]):
        return f"…{prompt[-30:]!r}; a reply begins with {lacking!r}"  # which the template takes off and puts back
    if not added or not (added + lacking).strip():
        raise Broken(f"the prompt ends in {prompt[-30:]!r}, but {leads[1][-30:]!r} stands before a reply in history")
    return f"the prompt has {added!r}, where history has {lacking!r}; see what each turn does"


def _puts_back(subject: Subject, lacking: str, history: str) -> bool:
    try:
        return subject.text([user("x"), assistant(lacking + LETTERS), user("x")]) == history
    except Exception:  # it refuses a reply that begins so: then it does not
        return False


@rule("history stays or forks", "write a message the same wherever it stands, however long the chat is")
def _stays(subject: Subject) -> str:
    outcomes = [outcome for chat in subject.chats for outcome in chat.outcomes]
    counts = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("extend", "realign", "fork"))
    return f"{len(subject.chats)} random chats: {counts}"


@rule("trained once", "report this: a reply that is observed again behind a fork must not train again")
def _trains_once(subject: Subject) -> str:
    for chat in subject.chats:
        rows = chat.ledger.rows()
        if sum(int(row.sampled.sum()) for row in rows) != chat.ledger.num_sampled:
            raise Broken(f"{chat.ledger.num_sampled} sampled ids, {[int(row.sampled.sum()) for row in rows]} in rows")
        if rows[-1].ids.tolist() != chat.transcript.ids or len(rows) != 1 + chat.outcomes.count("fork"):
            raise Broken("the rows are not what the policy saw")
    return f"{sum(chat.ledger.num_sampled for chat in subject.chats):,} sampled ids"


@rule("one end per turn", "let the end-of-turn token, and what follows it, be the same behind every message")
def _ends_once(subject: Subject) -> str:
    for cut in (False, True):
        chat = subject.chat_of()
        chat.observe(user("x"))
        for _ in range(2):
            chat.reply("said", cut=cut)
            chat.observe(user("x"))
        for stop in subject.renderer.stop_ids:
            have, due = chat.transcript.ids.count(stop), chat.whole().count(stop)
            if have != due:
                raise Broken(f"{subject.renderer.token(stop)!r} is recorded {have} times, rendered {due} times")
    return "neither missing nor doubled, behind whole and cut replies"


@rule("results at the seam", "let a special token, or a newline, stand between the turns, so that no two merge")
def _seams(subject: Subject) -> str:
    for content in RESULTS:
        chat = subject.chat_of()
        chat.observe(user("Start at 33."))
        chat.reply("Look it up.")
        new = chat.observe(tool_result(call("t"), content))
        whole = chat.whole()
        if whole[len(whole) - len(new) :] != new:
            raise Broken(f"the result {content!r} is recorded by other ids than one rendering has")
    return f"{len(RESULTS)} results have the ids of one rendering"


@rule("special tokens spelt out", "report this: a text must not be able to open or close a turn")
def _spelt(subject: Subject) -> str:
    renderer = subject.renderer
    names = [renderer.token(index) for index in sorted(renderer.special_ids)]

    def special(text: str) -> list[int]:
        chat = subject.chat_of([TRIED_TOOL | {"function": TRIED_TOOL["function"] | {"description": text}}])
        chat.observe(system(f"s {text}"), user(f"u {text}"))
        chat.reply(f"a {text} z")
        chat.observe(tool_result(call(text), f"t {text}"))
        chat.reply(f"a {text} z")
        chat.observe(user(f"u {text}"))
        return [index for index in chat.transcript.ids if index in renderer.special_ids]

    plain = special("x")
    for start in range(0, len(names), 100):
        some = names[start : start + 100]
        if special(" ".join(some)) != plain:
            broken = [name for name in some if special(name) != plain]
            raise Broken(f"{', '.join(broken[:5] or some[:5])}: taken for the token itself")
    return f"{len(names)} stay letters in every role"


# -- what is good to know ----------------------------------------------------------------------------------------------


@rule(
    "what each turn does",
    "prefer a template that only appends: each fork is one more row, which holds the whole chat",
    required=False,
)
def _outcomes(subject: Subject) -> str:
    result, said = tool_result(call("t"), "7404"), user("And then?")
    kinds: dict[str, tuple[str, Message, bool]] = {
        "reply": ("It is red.", said, False),
        "tool call": (subject.call, result, False),
        "thought, then a result": (THOUGHT + subject.call, result, False),
        "thought, then the user": (THOUGHT + "It is red.", said, False),
        "cut reply": ("It is", said, True),
    }
    seen = {kind: _outcome(subject, *played) for kind, played in kinds.items()}
    told = "; ".join(f"{kind}: {outcome}" for kind, outcome in seen.items())
    if "fork" in (seen["reply"], seen["tool call"]):
        raise Broken(told)
    return told


def _outcome(subject: Subject, reply: str, answer: Message, cut: bool) -> Outcome:
    """What the third turn of such a kind in a row does."""
    chat = subject.chat_of([TRIED_TOOL])
    chat.observe(system("Be brief."), user("Start at 33."))
    for _ in range(3):
        chat.reply(reply, cut=cut)
        chat.observe(answer)
    return chat.outcomes[-1]


@rule("what is shown", SEE_ABOVE, required=False)
def _roles(subject: Subject) -> str:
    renderer = subject.renderer
    in_words = "hidden" if subject.chat.tools == "hidden" else f"told in the system message ({subject.chat.syntax})"
    shown = {
        "system message": "shown" if renderer.shows_system else "told in the first user message",
        "tools": "listed by the template" if renderer.shows_tools else in_words,
        "results": "shown" if renderer.shows_results else "told in the user's words",
    }
    return "; ".join(f"{what}: {how}" for what, how in shown.items())


@rule("stop tokens", SEE_ABOVE, required=False)
def _stops(subject: Subject) -> str:
    return ", ".join(f"{subject.renderer.token(index)} ({index})" for index in subject.renderer.stop_ids)


@rule("newlines", "one newline between turns is usual: close Jinja's lines by `-%}`, else they show", required=False)
def _newlines(subject: Subject) -> str:
    text = subject.text([user("x"), assistant(LETTERS), user("x")])
    stop = subject.renderer.token(subject.renderer.stop_ids[0])
    behind = text.partition(LETTERS)[2].partition(stop)[2]
    gap = behind[: len(behind) - len(behind.lstrip())]
    if gap.count("\n") > 1:
        raise Broken(f"{gap!r} behind the end of a turn")
    return f"{gap!r} behind the end of a turn"


@rule("the same every day", "write a fixed date: tomorrow the same seed would give other ids", required=False)
def _is_timeless(subject: Subject) -> str:
    if "strftime_now" in str(subject.tokenizer.chat_template):
        raise Broken("the template asks for the date (strftime_now)")
    return "no clock"
