"""Loading a model, and what is refused: one sentence with the value and the fix."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agentgym.engines.causal import CausalLM, load_model, load_tokenizer
from agentgym.errors import ConfigError
from agentgym.policies.local import load_policy


@pytest.fixture
def broken(model_folder, tmp_path) -> Path:
    """A copy of a good model's folder, to be broken."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def test_trap_24_the_head_gives_float32_whatever_the_weights_are(load):
    lm = load("llama", "bfloat16")
    hidden = lm.hidden(torch.tensor([[5, 6, 7]]), positions=None, mask=None)
    assert (hidden.dtype, lm.logits(hidden).dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_backbone_and_head_give_the_models_own_logits(load, kind):
    lm = load(kind)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        hidden = lm.hidden(ids, positions=None, mask=None)
        assert hidden.shape == (1, 4, 32)  # not the logits: the head is applied to chosen positions only
        torch.testing.assert_close(lm.logits(hidden[:, 2]), lm.model(input_ids=ids).logits[:, 2])


def test_a_model_that_scales_its_logits_is_taken_whole(load):
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    shape = CohereConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logit_scale=0.25, bos_token_id=None, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    lm = CausalLM(CohereForCausalLM(shape).eval())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        whole = lm.model(input_ids=ids).logits
        torch.testing.assert_close(lm.logits(lm.hidden(ids, positions=None, mask=None)), whole)


def test_a_model_with_a_sliding_window_is_refused_by_name(load):
    with pytest.raises(ConfigError, match=r"'mistral' keeps DynamicSlidingWindowLayer .* full attention"):
        load("mistral")


def test_a_folder_without_a_model_is_named(tmp_path):
    for name in (str(tmp_path / "nothing"), str(tmp_path)):
        with pytest.raises(ConfigError, match=f"no model at '{name}': a model folder holds config.json"):
            load_model(name)


def test_a_name_that_no_hub_gives_is_one_sentence(model_folder):
    with pytest.raises(ConfigError, match="cannot load 'nobody/nothing': "):
        load_model("nobody/nothing")


def test_a_configuration_that_is_no_json_is_one_sentence(broken):
    (broken / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=f"cannot load '{broken}': .*JSON"):
        load_model(str(broken))


@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_weights_cut_short_are_one_sentence(broken, keep):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=f"cannot load '{broken}': "):
        load_model(str(broken))


def test_missing_weights_are_one_sentence(broken):
    (broken / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=f"cannot load '{broken}': .*model.safetensors"):
        load_model(str(broken))


def test_weights_of_another_shape_are_one_sentence(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ConfigError, match=f"cannot load '{broken}': "):
        load_model(str(broken))


def test_weights_that_lack_a_layer_are_refused_not_drawn_at_random(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"layers\.2\."):
        load_model(str(broken))


def test_a_missing_or_broken_tokenizer_is_one_sentence(broken):
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=f"cannot load '{broken}': "):
        load_tokenizer(str(broken))
    for path in broken.glob("*token*"):
        path.unlink()
    with pytest.raises(ConfigError, match=f"cannot load '{broken}': "):
        load_tokenizer(str(broken))


def test_a_tokenizer_without_a_chat_template_says_what_to_use(broken):
    (broken / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"has no chat template\. Use an instruction-tuned model"):
        load_policy(str(broken))


def test_cuda_without_a_gpu_is_one_sentence(model_folder):
    script = f"from agentgym.engines.causal import load_model; load_model({model_folder('llama')!r}, device='cuda')"
    found = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True
    )
    assert re.search(r"ConfigError: device 'cuda': torch .* sees no GPU; use cpu", found.stderr)


def test_a_type_of_weights_that_does_not_exist_is_named(model_folder):
    with pytest.raises(ConfigError, match="dtype 'float17'"):
        load_model(model_folder("llama"), dtype="float17")


def test_what_a_run_saves_loads_again(load, tmp_path):
    lm = load("llama")
    lm.model.save_pretrained(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    for name, p in lm.model.state_dict().items():
        assert torch.equal(p, again.state_dict()[name])
    assert isinstance(again, LlamaForCausalLM)
    assert isinstance(again.config, LlamaConfig)
