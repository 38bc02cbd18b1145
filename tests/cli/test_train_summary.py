from agentgym.cli.train_summary import spent

UPDATE = {"tokens_sampled": 30, "tokens_trained": 24.0, "policy_token_share": 0.25, "turns_mean": 2.5, "coverage": 0.8}


def test_what_updates_came_to_is_summed_with_flops_of_reading_sampling_and_training():
    skipped = {"tokens_sampled": 10, "tokens_trained": 0.0, "policy_token_share": 0.5, "turns_mean": 3, "coverage": 1.0}
    lost = {name: 0 for name in UPDATE}  # not one episode that counts
    updates = [{**UPDATE, "episodes": 10}, {**skipped, "episodes": 4}, {**lost, "episodes": 4}]
    # tokens: 30 / 0.25 + 10 / 0.5 = 140 in all; turns: 2.5 · 8 + 3 · 4; FLOPs: 1000 · (6 · 24 + 2 · 140)
    assert spent(updates, 1000) == {
        "num_turns": 32, "prompt_tokens": 100, "sampled_tokens": 40, "trained_tokens": 24, "flops": 424_000.0,
    }  # fmt: skip
