"""`tidegate.training` and `tidegate plan`: plans that keep their budgets, figures, errors."""

import json
import random

import numpy as np
import pytest
from test_found import command

import tidegate as tg
from tidegate import training


def gpt(layers=12, batch=8, **more):
    """Return GPT-2 small for sequences of 256."""
    block = training.Transformer(256, 768, 12, dropout=True)
    stages = [
        training.Embedding(50257, 768, positions=256),
        training.Block([block], repeat=layers, name="layer"),
        training.Linear(768, 50257, positions=256, bias=False),
        training.CrossEntropy(50257, positions=256),
    ]
    return training.model(stages, batch, name="gpt2", sample_bytes=2048, **more)


def test_plans_of_random_chains_keep_their_budgets():
    draws = random.Random(1)
    for _ in range(40):
        stages = [
            training.Stage(
                output_bytes=draws.randint(1, 6), saved_bytes=draws.randint(0, 12), gradient_bytes=draws.randint(0, 3),
                backward_extra_bytes=draws.randint(-3, 4), forward_time=draws.randint(1, 8),
                backward_time=draws.randint(1, 14), keeps=[training.Keep("int8", 2, 1.5)] * draws.randint(0, 1),
            )
            for _ in range(draws.randint(4, 14))
        ]  # fmt: skip
        skips = [training.Skip(1, len(stages))] if draws.random() < 0.5 else []
        chain = training.Chain(stages, skips)
        full = training.replay(chain, list(range(1, len(stages) + 1))).peak_bytes
        for budget in (full, full * 2 // 3, full // 2):
            try:
                schedule, time = training.rotor(chain, budget, slots=budget)
            except tg.BudgetError:
                with pytest.raises(tg.BudgetError, match="the step takes at least"):
                    training.rotor(chain, budget, slots=budget)
                continue
            found = training.replay(chain, schedule)
            assert found.peak_bytes <= budget
            assert found.time == time >= chain.plain_time
            assert found.extra_time == pytest.approx(time - chain.plain_time)


def test_a_plan_says_what_a_budget_costs():
    profile = gpt()
    whole = training.plan(profile, "100GiB", micro_batches=1)
    assert (whole.recomputed_stages, whole.peak_bytes) == (0, whole.plain_bytes)
    assert sum(whole.peak.values()) == whole.peak_bytes
    assert whole.peak["optimizer"] == 2 * whole.peak["parameters"]
    less = training.plan(profile, 4 << 30, micro_batches=1)
    assert less.peak_bytes <= 4 << 30
    assert whole.time < less.time <= 4 / 3 * whole.time
    assert str(less).startswith("The step takes ")
    parts = training.plan(profile, 3 << 30)
    assert sum(parts.micro_batches) == 8
    assert len(parts.micro_batches) > 1
    assert parts.gradients == "resident"
    curve = training.curve(profile)
    assert curve[0].memory_bytes == parts.floor_bytes
    assert training.plan(profile, parts.floor_bytes).peak_bytes <= parts.floor_bytes
    assert all(a.memory_bytes < b.memory_bytes and a.time > b.time for a, b in zip(curve, curve[1:], strict=False))
    largest = training.largest_batch(profile, 4 << 30)
    assert training.plan(profile, 4 << 30, batch=largest, micro_batches=1).peak_bytes <= 4 << 30
    with pytest.raises(tg.BudgetError):
        training.plan(profile, 4 << 30, batch=largest + 1, micro_batches=1)
    assert 0 < training.largest_batch(profile, 4 << 30, recompute=False) < largest


def test_below_the_floor_the_parts_are_named():
    with pytest.raises(tg.BudgetError, match=r"at least .* MiB, and 1024\.0 MiB are given: parameters .* optimizer"):
        training.plan(gpt(), "1GiB")


def test_numbers_of_numpy_are_taken_and_nonsense_is_named():
    stage = training.Stage(output_bytes=np.int64(1), saved_bytes=2, forward_time=np.float64(1))
    assert training.rotor(training.Chain([stage, stage]), np.int64(100))[0] == [1, 2]
    for wrong, words in [
        (lambda: training.rotor(training.Chain([]), 100), "a chain without stages"),
        (lambda: training.replay(training.Chain([stage]), [2]), "stage 2 where stage 1 belongs"),
        (lambda: training.Stage(forward_time=float("nan")), "forward_time=nan"),
        (lambda: training.Stage(saved_bytes=-1), "saved_bytes=-1"),
        (lambda: training.replay(training.Chain([stage]), ["x"]), "a stage of the schedule='x'"),
        (lambda: training.Chain([stage, 3]), r"stages\[1\]=3: expected a Stage"),
        (lambda: training.rotor(training.Chain([stage] * 2, [training.Skip(2, 1)]), 10), "a skip is from 2 to 1"),
        (lambda: training.sharding(10, 0, 1), "devices=0"),
        (lambda: training.sharding(10, 2, 1, accounting="deep"), "accounting='deep'"),
        (lambda: training.model([{"kind": "linear"}], 2), r"layers\[0\]=.*expected a Layer"),
        (lambda: training.Attention(8, 10, 3, scores="sparse"), "scores='sparse'"),
        (lambda: training.model([training.Attention(8, 10, 3)], 2), "3 heads of a width of 10"),
        (lambda: training.revolve(4096, 1), "4096 stages with 1 checkpoints would run up to 4095 times"),
        (lambda: training.Layer(), "the base of all layers"),
        (lambda: training.NoiseScale(1, 4).load_state_dict({"state": {"a": 1}}), "what state_dict returned"),
        (lambda: training.Target(1, 1).reached([(64.9, 10)]), "batch=64.9"),
        (lambda: training.micro_batches(2**40, 2**40), "parts=1099511627776"),
        (lambda: training.model([training.Linear(2**32, 2**32)], 1), "parameters: 4294967296"),
        (lambda: training.micro_batches(3, 4), "parts is 4"),
        (lambda: training.split(training.Chain([stage]), 2, 1), "devices is 2"),
        (lambda: training.NoiseScale(4, 4), "the two batches"),
        (lambda: training.front([(1, 2)], ["less"]), "expected 1 numbers, one for each direction"),
        (lambda: training.place([training.Lifetime(1, 2, 1)]), "the life of tensor 0"),
    ]:
        with pytest.raises(tg.ConfigError, match=words):
            wrong()


def test_the_noise_scale_of_a_synthetic_problem():
    draws = np.random.default_rng(0)
    mean, deviation = 0.05 * np.arange(20), 1.0 + 0.1 * np.arange(20)
    scale = training.NoiseScale(4, 32)
    for _ in range(3000):
        small = mean + deviation * draws.standard_normal((8, 20)) / 2
        scale.add((small**2).sum(1).mean(), (small.mean(0) ** 2).sum())
    truth = (deviation**2).sum() / (mean**2).sum()
    assert scale.value == pytest.approx(truth, rel=0.05)
    again = training.NoiseScale(4, 32)
    again.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    for one in (scale, again):
        one.add(3.0, 1.0)
    assert again.value == scale.value


def test_batches_grow():
    ada = training.AdaBatch(128, 2, 20, 1000)
    assert [ada.batch(epoch) for epoch in (0, 20, 60)] == [128, 256, 1000]
    assert training.LinearGrowth(100, 0.1, 1000).batch(10) == 200
    target = training.Target(1000, 64_000)
    assert target.critical_batch == 64
    times = [reached.time for reached in target.reached([(16, 1.0), (64, 1.5), (256, 5.0)])]
    assert min(times) == times[1]


def test_states_of_optimizers():
    shapes = [(1024, 512), (512,)]
    bytes_of = {p.name: p.bytes for p in training.states(shapes, optimizer="adam8bit")}
    assert bytes_of["optimizer"] == 2 * 1024 * 512 * (1 + 4 / 256) + 8 * 512
    assert [p.name for p in training.states(shapes, precision="bf16_master", optimizer="sgd")] == [
        "parameters", "gradients", "master copy",
    ]  # fmt: skip


def test_ways_to_divide_a_step_name_torchs_engines():
    ways = training.compare(gpt(batch=32), 4, memory="80GiB", link=1e11)
    assert {way.name for way in ways} == {"data", "zero1", "sharded", "tensor", "pipeline"}
    assert ways[0].name == "data"
    assert all(way.fits and way.torch.startswith("torch.") for way in ways)
    small = {way.name: way for way in training.compare(gpt(batch=32), 4, memory="1500MiB", link=1e11)}
    assert small["sharded"].fits
    assert not small["data"].fits
    assert small["data"].time is None


def said(capfd, *arguments):
    """Run the command, and return what it printed."""
    assert command(*arguments) == 0
    return capfd.readouterr().out


def test_the_command_plans_a_file(tmp_path, capfd):
    gpt().save(tmp_path / "gpt.json")
    assert training.Profile.load(tmp_path / "gpt.json") == gpt()
    done = said(
        capfd,
        "plan",
        tmp_path / "gpt.json",
        "--memory",
        "4GiB",
        "--micro-batches",
        "1",
        "--html",
        tmp_path / "plan.html",
    )
    assert "gpt2, 8 samples" in done
    assert "run forward again; the time is " in done
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 2
    assert "Memory over a step" in page
    plan = json.loads(said(capfd, "plan", tmp_path / "gpt.json", "--memory", "4GiB", "--micro-batches", "1", "--json"))
    assert plan["schedule"] == training.plan(gpt(), 4 << 30, micro_batches=1).schedule
    ways = said(
        capfd, "plan", tmp_path / "gpt.json", "--memory", "24GiB", "--devices", "8", "--link", "25GB", "--speed", "100"
    )
    assert "torch.distributed.fsdp.fully_shard" in ways
    assert command("plan", tmp_path / "gpt.json", "--memory", "24GiB", "--devices", "8", "--link", "25GB") == 1
    assert "--speed" in capfd.readouterr().err
    (tmp_path / "layers.json").write_text(
        '{"batch": 2, "layers": [{"kind": "linear", "inputs": 10, "outputs": 2}], "optimizer": "sgd"}'
    )
    assert "2 samples" in said(capfd, "plan", tmp_path / "layers.json", "--memory", "1MiB")
    assert training.Profile.load(tmp_path / "layers.json").held[0].bytes == 88


def test_layers_in_words_and_in_other_widths():
    layers = [
        training.Block([training.Transformer(64, 128, 4, scores=("sparse", 16))], repeat=2, name="layer"),
        training.Linear(128, 10, positions=64),
        training.CrossEntropy(10, positions=64),
    ]
    words = training.sums(layers, 8, precision="bf16")
    assert "layer, 2 of it, each:" in words
    assert "    backward needs scores of all heads: 2 × 8 × 4 × 64 × 16 = 65536 bytes" in words
    assert "  output: 8 × 64 × 10 × 2 = 10240 bytes" in words
    wide = training.widened(layers, 2)
    assert wide[0] == training.Block([training.Transformer(64, 256, 8, scores=("sparse", 16))], repeat=2, name="layer")
    assert wide[1:] == [training.Linear(256, 10, positions=64), layers[2]]
    for factor in (0, -1, 1e9, float("nan"), "2", True):
        with pytest.raises(tg.ConfigError, match="factor"):
            training.widened(layers, factor)
    with pytest.raises(tg.ConfigError, match="layers"):
        training.sums([3], 8)
