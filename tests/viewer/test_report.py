import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agentgym.errors import ConfigError
from agentgym.learner.metrics import read_metrics
from agentgym.ledger import Episode
from agentgym.messages import assistant, call
from agentgym.rollout.store import Store
from agentgym.viewer.report import percent, read_summary, seconds, write_report
from agentgym.viewer.samples import FOLD_AFTER, safe, samples, told


def page_of(run_dir: Path) -> str:
    return write_report(run_dir).read_text()


def text_of(html: str) -> str:
    plain = re.sub(r"<(style|svg).*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", plain)))


def copied(run_dir: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run_dir, folder / "copy"))


def first_after(run_dir: Path) -> Episode:
    store = Store(run_dir / "run.sqlite", readonly=True)
    try:
        return next(store.episodes(run="after", limit=1))
    finally:
        store.close()


@pytest.fixture(scope="session")
def browsed(run_dir, tmp_path_factory) -> str:
    """The page's DOM as a real browser holds it after everything that could run has run."""
    path = write_report(run_dir)
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "the report is tested in a real browser: apt-get install chromium"
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    profile = tmp_path_factory.mktemp("profile")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet,
         f"--user-data-dir={profile}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_browser_shows_the_headline_before_and_after(browsed, run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    text = text_of(browsed)
    rates = [f"{100 * summary[key]:.1f} %" for key in ("success_before", "success_after")]
    assert " → ".join(rates) in text
    assert f"not reached → {summary['h50_after']['value']:.1f}" in text
    assert "15.0 % [13.4, 16.7] of 2 400" in text  # the demonstrator
    assert "warm start alone 9.2 % [6.1, 13.5] of 240" in text
    assert "warm start alone, greedy 0.0 % [0.0, 1.6] of 240" in text


def test_a_browser_runs_nothing_that_a_model_wrote(browsed):
    assert "<title>agentgym/Lookup-v0 · lookup-11 · agentgym</title>" in browsed
    body = browsed[browsed.index("<body") :]
    assert not re.search(r"<script|<img|<iframe", body)
    assert '</p><script>document.title="owned"</script>' in text_of(browsed)  # shown, letter by letter
    assert "\u202e" not in browsed
    assert "‹U+202E›" in browsed


def test_the_figures_have_axes_and_the_pages_colours(browsed):
    figures = re.findall(r"<svg.*?</svg>", browsed, flags=re.DOTALL)
    labels = [match[1] for figure in figures if (match := re.search(r'aria-label="([^"]*)"', figure))]
    assert labels[:3] == [
        "Success by horizon before and after training",
        "Success of the training batch per update",
        "Training success of every horizon per update",
    ]
    assert {"32", "100 %", "trained"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", figures[0]))
    assert "var(--after)" in figures[0]
    assert not any(f"#0{i}0{i}0{i}" in browsed for i in range(1, 7))  # no stand-in colour left behind
    ids = re.findall(r'\bid="([^"]+)"', browsed)
    assert len(ids) == len(set(ids))


def test_the_page_needs_nothing_but_itself(run_dir):
    page = page_of(run_dir)
    assert "Content-Security-Policy" in page
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert page.count("<script") == 0


class _Nesting(HTMLParser):
    void = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs): ...

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_element_is_closed_where_it_was_opened(run_dir):
    parser = _Nesting()
    parser.feed(page_of(run_dir))
    assert parser.open == []


def test_the_failure_table_states_denominators_and_coverage(run_dir):
    # after: 340 episodes, 2 of them lost with their container; training: 100 updates of 192, 2 policy failures
    text = text_of(page_of(run_dir))
    assert "after 340 0 0 2 338 99.4 %" in text
    assert "training 19 200 2 0 0 19 200 100.0 %" in text


def test_shares_of_time_add_up_to_the_whole(run_dir):
    # warm start 31, generation 100 x 0.41, learning 100 x 0.24, evaluation 17.2, in all 121: 7.8 are other
    text = text_of(page_of(run_dir))
    for part in ("warm start 31", "generation 41", "learning 24", "evaluation 17", "other 8"):
        assert f"{part} s" in text


def test_the_same_run_gives_the_same_page(run_dir):
    assert page_of(run_dir) == page_of(run_dir)


def test_a_run_with_the_least_there_can_be_still_has_a_page(run_dir, tmp_path):
    bare = copied(run_dir, tmp_path)
    (bare / "run.sqlite").unlink()
    summary = {"env": "acme/Door-v0", "success_before": 0.1, "success_after": None, "ci_before": [0.0, 0.3]}
    (bare / "summary.json").write_text(json.dumps(summary))
    (bare / "metrics.jsonl").write_text('{"update": 1, "reward_mean": 0.1}\n{"update": 2, "reward_mean": 0.2}\n')
    text = text_of(page_of(bare))
    assert "10.0 % → –" in text
    assert "Success by horizon" not in text
    assert "Learning" in text


def test_a_torn_last_line_is_an_update_that_did_not_happen(run_dir, tmp_path):
    torn = copied(run_dir, tmp_path)
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"update": 101, "rew')
    assert [record["update"] for record in read_metrics(torn / "metrics.jsonl")][-2:] == [99, 100]


def test_an_update_that_was_run_again_counts_once_with_its_last_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "reward_mean": 0}\n{"update": 1, "reward_mean": 1}\n')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"update": 1, "reward_mean": 1}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\nnonsense\n{"update": 3}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_folder_without_a_summary_is_refused_with_the_fix(tmp_path):
    with pytest.raises(ConfigError, match=r"no summary\.json.*--resume"):
        write_report(tmp_path)


def test_a_summary_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"summary\.json is no summary of a run: \[1, 2\]"):
        read_summary(tmp_path)


def test_a_map_of_which_nothing_was_scored_is_left_out_and_an_empty_level_has_no_half(tmp_path):
    rate = {"rate": 0.5, "low": 0.3, "high": 0.7, "n": 20, "successes": 10}
    half = {"value": 2.0, "low": 1.0, "high": 4.0}
    empty, scored = (
        {"difficulty": level, "by_horizon": rows, "h50": found}
        for level, rows, found in ((0, [], None), (1, [{"horizon": 2, **rate}], half))
    )
    for levels, is_drawn in (([empty], False), ([empty, scored], True), ([scored], True)):
        summary = {"command": "horizon", "env": "agentgym/Lookup-v0", "by_horizon": [], "map": {"after": levels}}
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        assert ("Difficulty and horizon" in page_of(tmp_path)) == is_drawn


def test_what_a_model_wrote_cannot_drive_the_terminal_nor_hide():
    assert safe("a\x1b[2Jb\n\tc\u202ed\r\ne\rf") == "a‹U+001B›[2Jb\n\tc‹U+202E›d\r\ne‹U+000D›f"
    assert safe("\ud800 \u2028 \U000e0041") == "‹U+D800› ‹U+2028› ‹U+E0041›"
    assert safe("99.9\u202f% déjà 日本 👍") == "99.9\u202f% déjà 日本 👍"


def test_long_transcripts_are_folded_and_lose_nothing(run_dir):
    episode = first_after(run_dir)
    long = replace(episode, messages=tuple(assistant(str(i)) for i in range(FOLD_AFTER + 10)))
    head, middle, tail = told(long)["folds"]
    assert [m["content"] for m in head + middle + tail] == [str(i) for i in range(FOLD_AFTER + 10)]
    assert (len(head), len(middle), len(tail)) == (7, 10, 7)


def test_a_megabyte_from_a_model_is_cut_and_said_to_be(run_dir):
    episode = replace(first_after(run_dir), messages=(assistant("x" * 1_000_000),))
    assert told(episode)["folds"][0][0]["content"].endswith("x… [996,000 more characters]")


def test_arguments_that_are_no_json_are_shown_as_the_model_spelt_them(run_dir):
    lookup = call("lookup", key=33)
    broken = {**lookup, "function": {"name": "lookup", "arguments": "{key: 33"}}
    episode = replace(first_after(run_dir), messages=(assistant("", lookup, broken),))  # type: ignore[arg-type]
    assert [c["arguments"] for c in told(episode)["folds"][0][0]["calls"]] == ["key=33", "{key: 33"]


def test_samples_are_the_same_tasks_by_rule_and_one_failure(run_dir):
    store = Store(run_dir / "run.sqlite", readonly=True)
    before, after = list(store.episodes(run="before")), list(store.episodes(run="after"))
    store.close()
    shown = samples(before, after)
    assert [sample["horizon"] for sample in shown[:4]] == [1, 6, 14, 32]  # places 0, 5, 11, 16 of 17 horizons
    assert shown[4]["why"] == "first failure after training"
    failed = next(e for e in after if e.task_id == shown[4]["task"])
    assert failed.counts
    assert not failed.success
    assert samples(before, []) == []
    alone = samples(None, after)
    assert [sample["task"] for sample in alone] == [sample["task"] for sample in shown]
    assert [when for sample in alone for when, _ in sample["sides"]] == [""] * 5
    assert alone[4]["why"] == "first failure"
    lost = [replace(e, reward=0.0) for e in after]  # then it is among those that are shown anyway
    assert [sample["why"] for sample in samples(None, lost)] == ["first failure", None, None, None]


def test_durations_and_rates_read_as_a_person_says_them():
    assert [seconds(s) for s in (7.4, 119, 121, 7300, None)] == [
        "7\u202fs", "119\u202fs", "2.0\u202fmin", "2.0\u202fh", "–",
    ]  # fmt: skip
    assert [percent(r) for r in (0.125, 1.0, None, math.nan)] == ["12.5\u202f%", "100.0\u202f%", "–", "–"]


def test_a_suite_has_a_row_for_each_part_and_their_mean(tmp_path):
    won, none = ({"rate": rate, "low": low, "high": 1.0, "n": n} for rate, low, n in ((1.0, 0.8, 20), (None, 0.0, 0)))
    parts = [
        {"name": name, "weight": weight, "success": success, "num_scored": success["n"], "num_planned": 20}
        for name, weight, success in (("agentgym/Door-v0", 2.5, won), ("<b>hard</b>", 1.0, none))
    ]
    summary = {
        "command": "eval", "env": "agentgym/Door-v0, agentgym/Lookup-v0", "model": "gold", "verdict": "undecided",
        "success": none | {"n": 20}, "num_planned": 40, "num_scored": 20, "environments": parts,
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = text_of(page_of(tmp_path))
    assert "environment weight success 95 % interval scored planned" in text
    assert "agentgym/Door-v0 2.5 100.0 % 80.0 % to 100.0 % 20 20 <b>hard</b> 1 – 0.0 % to 100.0 % 0 20" in text
    assert "weighted – 0.0 % to 100.0 % 20 40" in text


def test_an_evaluation_that_ended_early_has_the_coverage_of_what_was_planned_and_its_episodes(run_dir, tmp_path):
    with Store(run_dir / "run.sqlite", readonly=True) as old, Store(tmp_path / "run.sqlite") as new:
        for episode in old.episodes(run="after", limit=8):
            new.add(replace(episode, run="eval"))
    rate = {"rate": 1.0, "low": 0.7, "high": 1.0, "n": 8, "successes": 8}
    summary = {"command": "eval", "env": "agentgym/Lookup-v0", "verdict": "undecided", "success": rate}
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "num_planned": 100, "num_scored": 8}))
    text = text_of(page_of(tmp_path))
    assert "eval 8 of 100 0 0 0 8 8.0 % undecided" in text
    assert "Sample episodes Chosen by rule" in text
    assert text.count("solved") == 4  # horizons 1, 3, 6 and 8 of the first eight


def test_an_evaluation_has_a_report_of_its_own(tmp_path):
    rate = {"rate": 0.5, "low": 0.3, "high": 0.7, "n": 20, "successes": 10}
    summary = {
        "command": "eval", "env": "agentgym/Lookup-v0", "model": "gold", "verdict": "decided", "success": rate,
        "num_planned": 21, "num_scored": 20, "by_horizon": [{"horizon": 4, **rate, "num_failed": 1}],
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = text_of(page_of(tmp_path))
    assert "evaluation report" in text
    assert "Success on 20 scored attempts of 21 planned 50.0 % 95 % interval: 30.0 % to 70.0 %; decided" in text
    assert "horizon success 4 50.0 % [30, 70] 10/20" in text
    assert "before" not in text
