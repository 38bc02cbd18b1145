"""Chat <-> token ids, through the tokenizer's own chat template, by suffix difference.

Owns what is observed: the ids of the opening chat, and the ids by which each further turn extends it. What was
sampled is never encoded again. A special token that is spelt out in somebody's text is encoded as its letters.
Three outcomes per turn: *extend* (the template only appends), *realign* (it words the last reply differently; the
sampled ids stay, what follows is taken from the difference of two renderings), *fork* (it rewrote what went
before: the whole chat is observed anew, in a new row)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from agentgym.errors import ConfigError
from agentgym.messages import JSON, Message, assistant, system, tool_result, user
from agentgym.messages import call as make_call

Outcome = Literal["extend", "realign", "fork"]
KEPT = 16_384  # renderings, encodings and decodings that are remembered of each kind
KEPT_LENGTH = 2_000  # of characters or ids: what is longer is hardly met twice, and would fill the memory
MARKS = re.compile("[\ue000\ue001]")  # private use: no template has a business with them
MARKED = re.compile("\ue000([^\ue000\ue001]*)\ue001")
THOUGHT_TAGS = {"<think>", "</think>"}  # the policy's own to write; they open and close no turn
TRIED_TOOL = {"type": "function", "function": {"name": "t", "description": "zwv", "parameters": {}}}
RESULTS: list[Message] = [
    assistant("y"),
    tool_result(make_call("t"), "zwv"),
    tool_result(make_call("t"), "zwv"),
    assistant("y"),
    tool_result(make_call("t"), "zwv"),
]  # tried on every template; none has a business with `zwv`


@dataclass(frozen=True, slots=True)
class Observed:
    """Ids that the environment's side contributes before the next reply; after a fork they are the whole chat."""

    ids: tuple[int, ...]
    outcome: Outcome


class Renderer:
    """One tokenizer's chat template. Raises ConfigError for a tokenizer without one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template. "
                "Use an instruction-tuned model, or set tokenizer.chat_template and save it."
            )
        self.tokenizer = tokenizer
        self._markers: set[str] = set()
        # Some tokenizers put a space before whatever comes first, and take it off again: those see a newline first.
        apart = [*self._piece("\n", False, ""), *self._piece("x", False, "")]
        self.adds_spaces = self._piece("\nx", False, "") != apart
        self._newline = "\n" if self.adds_spaces else ""
        # Most tokenizers name only a few of their special tokens; all of them are marked in the vocabulary.
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special = {*special, *tokenizer.all_special_tokens} - THOUGHT_TAGS
        self._special = _any_of(special)
        self.closing = self._closing_text()
        self.shows_tools = self._shows([user("x")], [TRIED_TOOL])
        self.shows_system = self._shows([system("zwv"), user("x")])
        self.shows_results = self._shows([user("x"), *RESULTS])
        self._markers = self._found_markers()
        self._special = _any_of(special | self._markers)
        self.special_ids = frozenset(map(self._id_of, special | self._markers))
        self.stop_ids = self._stop_ids()
        self.only_appends = self._only_appends()
        prompt = self._text([user("x")], None, prompt=True)
        self._prompt = prompt[max((found.start() for found in self._special.finditer(prompt)), default=0) :]
        self._kept_suffix = lru_cache(KEPT)(self._suffix_text)
        self._kept_encoding = lru_cache(KEPT)(self._encode_text)
        self._kept_decoding = lru_cache(KEPT)(self._decode)

    def open(self, messages: Sequence[Message], tools: list[dict] | None) -> tuple[int, ...]:
        """Ids of the opening chat, up to where the policy begins to write."""
        return self._encode(self._text(messages, tools, prompt=True))

    def extend(
        self, history: Sequence[Message], new: Sequence[Message], tools: list[dict] | None, *, stopped_by: int | None
    ) -> Observed:
        """What follows the policy's last reply (the last of `history`) now that `new` messages have come.

        `stopped_by` is the stop token that ended the reply, or None when it was cut: then the rest of the turn's end
        is observed too."""
        tail, as_shown = self._rest_of_closing(stopped_by)
        behind = "" if stopped_by is None else self.token(self.stop_ids[0])
        if self.only_appends:
            return Observed(self._encode(tail + self._suffix(_key(new)), behind), as_shown)
        after = self._text([*history, *new], tools, prompt=True)
        opening = self._text(history[:-1], tools, prompt=True)
        exact = opening + self._defuse(history[-1]["content"]) + self.closing
        if after.startswith(exact):
            return Observed(self._encode(tail + after[len(exact) :], behind), as_shown)
        before = self._text(history, tools, prompt=False)
        if before.startswith(opening.rstrip()) and after.startswith(before):
            return Observed(self._encode(tail + after[len(before) :], behind), "realign")
        return Observed(self._encode(after), "fork")

    def written(self, text: str) -> tuple[int, ...]:
        """Ids of a reply that somebody wrote, with the stop token a policy would end it by."""
        return (*self._encode(self._defuse(text), self._prompt), self.stop_ids[0])

    def decode(self, ids: tuple[int, ...]) -> str:
        """Text of sampled ids, special tokens included."""
        return self._kept_decoding(ids) if len(ids) <= KEPT_LENGTH else self._decode(ids)

    def _decode(self, ids: tuple[int, ...]) -> str:
        if not self.adds_spaces:
            return self._plain_text(list(ids))
        before = self._piece(self._newline, False, "")
        return self._plain_text([*before, *ids])[len(self._plain_text(before)) :]

    def _plain_text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text if isinstance(text, str) else "".join(text)

    def token(self, index: int) -> str:
        """A token as the vocabulary spells it."""
        return str(self.tokenizer.convert_ids_to_tokens(index))

    def _id_of(self, token: str) -> int:
        index: Any = self.tokenizer.convert_tokens_to_ids(token)
        return int(index)

    # -- text -----------------------------------------------------------------------------------------------------

    def _text(self, messages: Sequence[Message], tools: list[dict] | None, *, prompt: bool) -> str:
        """The template's rendering, in which special tokens that somebody spelt out are marked.

        Raises ConfigError where the template cannot be read or refuses such a chat."""
        chat, offered = self._all_defused(list(messages)), self._all_defused(tools)
        render: Any = self.tokenizer.apply_chat_template
        try:
            return render(chat, tools=offered, tokenize=False, add_generation_prompt=prompt)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise ConfigError(
                f"the chat template of {self.tokenizer.name_or_path!r} does not render this chat: {error}. "
                "Use a model whose template takes system, user and assistant messages, or mend its chat_template."
            ) from error

    def _suffix(self, key: tuple[tuple[str, str, str], ...]) -> str:
        is_short = sum(len(content) for _, content, _ in key) <= KEPT_LENGTH
        return self._kept_suffix(key) if is_short else self._suffix_text(key)

    def _suffix_text(self, new: tuple[tuple[str, str, str], ...]) -> str:
        """What a template that only appends adds for these messages, whatever went before."""
        made = make_call(new[0][2] or "tool")
        before: list[Message] = [user("x"), assistant("y")]
        chat = list(before)
        for role, content, name in new:
            message: Message = tool_result(made, content) if role == "tool" else {"role": role, "content": content}  # type: ignore[typeddict-item]
            chat.append({**message, "name": name} if role == "tool" else message)
        return self._text(chat, None, prompt=True)[len(self._text(before, None, prompt=False)) :]

    def _rest_of_closing(self, stopped_by: int | None) -> tuple[str, Outcome]:
        """What of a turn's end is still to be observed, and whether the chat then reads as the template writes it."""
        if stopped_by is None:
            return self.closing, "extend"
        before, found, rest = self.closing.partition(self.token(stopped_by))
        if stopped_by not in self.special_ids or not found:
            return self.closing, "realign"
        return rest, "realign" if before else "extend"

    def _closing_text(self) -> str:
        """What the template writes behind a reply. Where it writes something else behind the last one, such as the end
        of the text, then what both begin with."""
        last = self._behind_reply([])
        inside = self._behind_reply([user("x")])
        if inside.startswith(last):
            return last
        pairs = zip(self._encode_text(last), self._encode_text(inside), strict=False)
        return self._decode(tuple(a for a, b in takewhile(lambda pair: pair[0] == pair[1], pairs)))

    def _behind_reply(self, more: list[Message]) -> str:
        text = self._text([user("x"), assistant("yzw"), *more], None, prompt=False)
        if "yzw" not in text:
            raise ConfigError(f"the chat template of {self.tokenizer.name_or_path!r} does not show assistant messages")
        return text[text.rindex("yzw") + 3 :]

    def _stop_ids(self) -> tuple[int, ...]:
        """The token that closes a turn in the template, then the tokenizer's end-of-text."""
        ids = [i for i in self._encode_text(self.closing) if i in self.special_ids][:1]
        end: Any = self.tokenizer.eos_token_id
        if end is not None and end not in ids:
            ids.append(int(end))
        if not ids:
            raise ConfigError(f"the template of {self.tokenizer.name_or_path!r} ends a turn with no special token")
        return tuple(ids)

    def _only_appends(self) -> bool:
        """Whether no rendering ever changes an earlier one, tried on a chat with all that templates rewrite."""
        thought = "<think>\nfirst\n</think>\n\nthen "
        chat: list[Message] = [{"role": "system", "content": "s "}, user(" u"), assistant(thought)]
        made = make_call("t", a=1)
        chat += [tool_result(made, "r\n"), assistant("mid"), user("v"), assistant(thought), user("w"), assistant("z")]
        offers = (None, [TRIED_TOOL]) if self.shows_tools else (None,)
        try:
            return all(self._appends(chat[: k + 1], tools) for tools in offers for k in range(2, len(chat)))
        except ConfigError:  # a template may refuse such a chat: then every turn is rendered whole
            return False

    def _appends(self, chat: list[Message], tools: list[dict] | None) -> bool:
        """Whether the chat's last message is appended to the rendering of those before it."""
        *earlier, last = chat
        now = self._text(earlier, tools, prompt=False)
        prompted = self._text(earlier, tools, prompt=True)
        then = self._text(chat, tools, prompt=False)
        if not (prompted.startswith(now) and then.startswith(now)):
            return False
        if last["role"] == "assistant":
            return then == prompted + last["content"] + self.closing
        return self._text(chat, tools, prompt=True) == now + self._suffix_text(_key([last]))

    def _shows(self, chat: Sequence[Message], tools: list[dict] | None = None) -> bool:
        """Whether the template takes such a chat, and shows each text `zwv` in it."""
        due = len(tools or ()) + sum(message["content"] == "zwv" for message in chat)
        try:
            return self._text(chat, tools, prompt=True).count("zwv") >= due
        except ConfigError:
            return False

    def _found_markers(self) -> set[str]:
        """Added tokens that are not special, yet stand between the turns of the template: as good as special."""
        chat: list[Message] = [user("x"), *(RESULTS if self.shows_results else [assistant("y")]), user("x")]
        text = self._text(chat, None, prompt=False)
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if not token.special}
        return {name for name in added if name in text and not (name.isspace() or name.isalnum())} - THOUGHT_TAGS

    # -- special tokens spelt in text -------------------------------------------------------------------------------

    def _defuse(self, text: str) -> str:
        """Put marks around every special token spelt in text; `_encode_text` encodes what is marked as letters."""
        if MARKS.search(text):
            text = MARKS.sub("\ufffd", text)
        return self._special.sub("\ue000\\g<0>\ue001", text)

    def _all_defused(self, value: JSON) -> JSON:
        """The value with every text in it defused: names of tools and their descriptions are somebody's text too."""
        if isinstance(value, str):
            return self._defuse(value)
        if isinstance(value, dict):
            return {self._defuse(str(key)): self._all_defused(inner) for key, inner in value.items()}
        return [self._all_defused(inner) for inner in value] if isinstance(value, list) else value

    def _encode(self, text: str, behind: str = "") -> tuple[int, ...]:
        """Ids of a text as they are behind another: some tokenizers put a space before whatever comes first."""
        encode = self._kept_encoding if len(text) <= KEPT_LENGTH else self._encode_text
        before, ids = self._kept_encoding(behind), encode(behind + text)
        return ids[len(before) :] if ids[: len(before)] == before else encode(text)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for i, piece in enumerate(MARKED.split(text)):
            is_spelt = i % 2 == 1  # every second piece is a special token spelt out
            if not is_spelt:  # a template that cuts a text may leave one mark of two
                piece = MARKS.sub("", piece)
            for part in piece if is_spelt and piece in self._markers else [piece] * bool(piece):
                ids += self._piece(part, is_spelt, self._newline if ids else "")
        return tuple(ids)

    def _piece(self, text: str, is_spelt: bool, behind: str) -> list[int]:
        made: Any = self.tokenizer(behind + text, add_special_tokens=False, split_special_tokens=is_spelt)
        return made["input_ids"][len(self._piece(behind, False, "")) :] if behind else made["input_ids"]


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _key(new: Sequence[Message]) -> tuple[tuple[str, str, str], ...]:
    """What of new messages a template that only appends can show."""
    return tuple((m["role"], m["content"], m.get("name", "")) for m in new)
