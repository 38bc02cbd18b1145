"""Chat <-> token ids, through the tokenizer's own chat template, by suffix difference.

Owns what is observed: the ids of the opening chat, and the ids by which each further turn extends it. What was
sampled is never encoded again. A special token that is spelt out in somebody's text is encoded as its letters.
Three outcomes per turn: *extend* (the template only appends), *realign* (it words the last reply differently; the
sampled ids stay, what follows is taken from the difference of two renderings), *fork* (it rewrote what went
before: the whole chat is observed anew, in a new row)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from agentgym.errors import ConfigError
from agentgym.messages import JSON, Message, assistant, tool_result, user
from agentgym.messages import call as make_call

Outcome = Literal["extend", "realign", "fork"]
KEPT = 16_384  # renderings, encodings and decodings that are remembered of each kind
KEPT_LENGTH = 2_000  # of characters or ids: what is longer is hardly met twice, and would fill the memory
TRIED_TOOL = {"type": "function", "function": {"name": "t", "description": "d", "parameters": {}}}


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
        self.shows_tools = "tools" in str(tokenizer.chat_template)
        # Most tokenizers name only a few of their special tokens; all of them are marked in the vocabulary.
        added = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = {*added, *tokenizer.all_special_ids}
        names = sorted({*added.values(), *tokenizer.all_special_tokens}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self._mark = "\ue000"  # private use: no template has a business with it
        self.closing = self._closing_text()
        self.stop_ids = self._stop_ids()
        self.only_appends = self._only_appends()
        self.shows_results = self._shows_results()
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
        tail = self.closing
        if stopped_by is not None:
            stop = self.tokenizer.convert_ids_to_tokens(stopped_by)
            tail = tail.removeprefix(stop if isinstance(stop, str) else "")
        if self.only_appends:
            return Observed(self._encode(tail + self._suffix(_key(new))), "extend")
        after = self._text([*history, *new], tools, prompt=True)
        opening = self._text(history[:-1], tools, prompt=True)
        exact = opening + self._defuse(history[-1]["content"]) + self.closing
        if after.startswith(exact):
            return Observed(self._encode(tail + after[len(exact) :]), "extend")
        before = self._text(history, tools, prompt=False)
        if before.startswith(opening.rstrip()) and after.startswith(before):
            return Observed(self._encode(tail + after[len(before) :]), "realign")
        return Observed(self._encode(after), "fork")

    def written(self, text: str) -> tuple[int, ...]:
        """Ids of a reply that somebody wrote, with the stop token a policy would end it by."""
        return (*self._encode(self._defuse(text)), self.stop_ids[0])

    def decode(self, ids: tuple[int, ...]) -> str:
        """Text of sampled ids, special tokens included."""
        return self._kept_decoding(ids) if len(ids) <= KEPT_LENGTH else self._decode(ids)

    def _decode(self, ids: tuple[int, ...]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text if isinstance(text, str) else "".join(text)

    # -- text -----------------------------------------------------------------------------------------------------

    def _text(self, messages: Sequence[Message], tools: list[dict] | None, *, prompt: bool) -> str:
        """The template's rendering, in which special tokens that somebody spelt out are marked.

        Raises ConfigError where the template cannot be read or refuses such a chat."""
        chat, offered = self._all_defused(list(messages)), self._all_defused(tools)
        render: Any = self.tokenizer.apply_chat_template
        try:
            return render(chat, tools=offered, tokenize=False, add_generation_prompt=prompt)
        except (TemplateError, TypeError, ValueError) as error:
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

    def _closing_text(self) -> str:
        text = self._text([user("x"), assistant("yzw")], None, prompt=False)
        if "yzw" not in text:
            raise ConfigError(f"the chat template of {self.tokenizer.name_or_path!r} does not show assistant messages")
        return text[text.rindex("yzw") + 3 :]

    def _stop_ids(self) -> tuple[int, ...]:
        """The token that closes a turn in the template, then the tokenizer's end-of-text."""
        ids = [i for i in self._encode_text(self.closing) if i in self._special_ids][:1]
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

    def _shows_results(self) -> bool:
        """Whether the template shows a tool's result, in a chat as ours are."""
        chat: list[Message] = [user("x"), assistant("y"), tool_result(make_call("t"), "zwv")]
        try:
            return "zwv" in self._text(chat, None, prompt=True)
        except ConfigError:
            return False

    # -- special tokens spelt in text -------------------------------------------------------------------------------

    def _defuse(self, text: str) -> str:
        """Put marks around every special token spelt in text; `_encode_text` encodes what is marked as letters."""
        if self._mark in text:
            text = text.replace(self._mark, "\ufffd")
        return self._special.sub(lambda found: f"{self._mark}{found[0]}{self._mark}", text)

    def _all_defused(self, value: JSON) -> JSON:
        """The value with every text in it defused: names of tools and their descriptions are somebody's text too."""
        if isinstance(value, str):
            return self._defuse(value)
        if isinstance(value, dict):
            return {self._defuse(str(key)): self._all_defused(inner) for key, inner in value.items()}
        return [self._all_defused(inner) for inner in value] if isinstance(value, list) else value

    def _encode(self, text: str) -> tuple[int, ...]:
        return self._kept_encoding(text) if len(text) <= KEPT_LENGTH else self._encode_text(text)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for i, piece in enumerate(text.split(self._mark)):
            if piece:  # every second piece is a special token spelt out
                made = self.tokenizer(piece, add_special_tokens=False, split_special_tokens=i % 2 == 1)
                ids += made["input_ids"]  # type: ignore[arg-type]
        return tuple(ids)


def _key(new: Sequence[Message]) -> tuple[tuple[str, str, str], ...]:
    """What of new messages a template that only appends can show."""
    return tuple((m["role"], m["content"], m.get("name", "")) for m in new)
