"""The precision probe: what half-precision bodies cost is measured before the first shard, and is said everywhere."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import build_cache, build_options
from fake_cache import make_cache
from tiny import make_pairs, make_trio, write_jsonl

from precompute.build.options import BuildOptions
from precompute.check.__main__ import main as check_main
from precompute.models import folders
from precompute.models.folders import load_models
from precompute.models.role_model import RoleModel
from precompute.scoring import probe
from precompute.scoring.dense import angle_degrees
from precompute.scoring.score import Scorer
from shards import ShardCache, TeacherSpec
from shards.errors import CacheDamaged, NonFiniteLogits
from shards.format.manifest import MANIFEST_FILE
from shards.format.nodes import StrengthNodes
from shards.format.plan import Plan
from shards.format.schema import Pair
from shards.inspect.__main__ import main as inspect
from shards.modelfiles.find import resolve
from shards.teacher.precision import BAD_DEGREES, GOOD_DEGREES, MUCH_ROUNDING, Precision
from student.train.__main__ import main as train

MEASURED = Precision(
    dtype="bfloat16",
    against="float32",
    positions=100,
    negative="reverse",
    signal_nats=0.09,
    error_nats=0.03,
    angle_degrees=1.0,
    rounded_share=0.0,
)


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    """A trio whose models are as close to each other as a reference and its DPO model, and pairs."""
    folder = tmp_path_factory.mktemp("near")
    return make_trio(folder, size=0.003), write_jsonl(folder / "pairs.jsonl", make_pairs(12))


@pytest.fixture(scope="module")
def halves(near, tmp_path_factory):
    """Caches of the near trio, by dtype."""
    out = tmp_path_factory.mktemp("halves")
    return {dtype: build(near, out / dtype, dtype=dtype) for dtype in ("float32", "float16", "bfloat16")}


def build(near, out, **options):
    trio, pairs = near
    return build_cache(build_options(trio, pairs, out, top_k=5, max_top_k=12, **options))


def plant(monkeypatch):
    """Float16 bodies whose products round to bfloat16."""
    own = folders._load_full

    def load(*args, **kwargs):
        model = own(*args, **kwargs)
        if model.dtype == torch.float16:
            for part in (part for part in model.base_model.modules() if isinstance(part, torch.nn.Linear)):
                part.register_forward_hook(lambda module, given, found: found.bfloat16().half())
        return model

    monkeypatch.setattr(folders, "_load_full", load)


def levels(**changes):
    return [level for level, _ in dataclasses.replace(MEASURED, **changes).faults()]


# ---- what is measured


def test_bfloat16_bodies_lose_more_than_float16_ones_and_float32_ones_are_not_measured(halves):
    assert Precision.of(halves["float32"].plan) is None
    coarse, fine = (Precision.of(halves[dtype].plan) for dtype in ("bfloat16", "float16"))
    assert (coarse.dtype, fine.dtype, coarse.against) == ("bfloat16", "float16", "float32")
    assert coarse.error_nats > 4 * fine.error_nats > 0
    assert coarse.angle_degrees > 4 * fine.angle_degrees > 0
    assert coarse.signal_nats == fine.signal_nats


def test_the_plan_of_float32_bodies_has_no_precision(halves):
    assert "precision" not in halves["float32"].plan.to_json()
    assert "precision" in halves["float16"].plan.to_json()


def test_a_planted_rounding_is_found(near, halves, tmp_path, monkeypatch):
    plant(monkeypatch)
    planted = Precision.of(build(near, tmp_path / "cache", dtype="float16").plan)
    honest = Precision.of(halves["float16"].plan)
    assert planted.dtype == "float16"
    assert planted.angle_degrees > 2 * honest.angle_degrees and planted.error_nats > 2 * honest.error_nats


def test_the_probe_equals_the_dense_formulas(near):
    """Signal, error, angle and D_t written out in float64."""
    trio, _ = near
    found_at = {role: resolve(str(folder)) for role, folder in trio.items()}
    rows = probe.probe_rows(corpus_rows(near))
    numerics = {"dtype": "bfloat16"}
    device = torch.device("cpu")
    exact = probe.exact_logprobs(found_at, 18, rows, numerics=numerics, device=device)
    models = load_models(found_at, 18, dtype="bfloat16", device="cpu")
    scorer = Scorer(models=models, pairs=(), nodes=StrengthNodes(), chunk_positions=7, device=device)
    spec = TeacherSpec(gain=3.0)
    found = probe.precision(scorer, exact, spec)

    parts = list(probe.logprobs_of(scorer, rows))
    rounded = {role: torch.cat([part[role] for part in parts]).double().numpy() for role in trio}
    true = {role: l_NV.double().numpy() for role, l_NV in exact.logprobs.items()}
    signal, seen = (part["dpo"] - part["reverse"] for part in (true, rounded))
    mass = np.exp(true["dpo"])
    assert found.positions == len(mass) == sum(int(row.loss_mask.sum()) for row in rows)
    assert found.signal_nats == pytest.approx((mass * abs(signal)).sum(-1).mean(), rel=1e-9)
    assert found.error_nats == pytest.approx((mass * abs(seen - signal)).sum(-1).mean(), rel=1e-9)
    distances = [abs(np.exp(part["dpo"]) - np.exp(part["reverse"])).sum(-1) for part in (true, rounded)]
    assert found.rounded_share == pytest.approx((2 * abs(distances[1] - distances[0]) > distances[1]).mean())
    gradients = [
        gradient(part, distance, true["reference"]) for part, distance in zip((true, rounded), distances, strict=True)
    ]
    squares = [float((g**2).sum()) for g in (*gradients, gradients[0] - gradients[1])]
    assert found.angle_degrees == pytest.approx(angle_degrees(*squares), rel=1e-6)


def gradient(part, distance_N, student_NV):
    strength_N = 3.0 * distance_N + 1e-3
    logits_NV = part["dpo"] + strength_N[:, None] * (part["dpo"] - part["reverse"])
    teacher_NV = logits_NV - np.log(np.exp(logits_NV).sum(-1, keepdims=True))
    ratio_NV, mass_NV = student_NV - teacher_NV, np.exp(student_NV)
    return (0.1 / strength_N)[:, None] * mass_NV * (ratio_NV - (mass_NV * ratio_NV).sum(-1, keepdims=True))


def corpus_rows(near):
    from precompute.models.folders import load_tokenizer
    from precompute.tokens.corpus import load_corpus

    tokenizer = load_tokenizer(resolve(str(near[0]["reference"])))
    return load_corpus(str(near[1]), tokenizer=tokenizer, max_length=64, progress=False).responses


def test_a_sample_is_spread_over_the_rows_and_small(near):
    rows = corpus_rows(near)
    picked = probe.probe_rows([*rows] * 100)
    assert len(picked) == probe.PROBE_ROWS
    assert picked[0].sample_id == rows[0].sample_id and picked[-1].sample_id == rows[-1].sample_id
    long = dataclasses.replace(
        rows[0], input_ids=np.ones(3000, np.int32), loss_mask=np.r_[np.zeros(1000, bool), np.ones(2000, bool)]
    )
    (only,) = probe.probe_rows([long] * 5)
    assert only.loss_mask.sum() == probe.PROBE_POSITIONS
    assert np.flatnonzero(only.loss_mask)[[0, -1]].tolist() == [1000, 2999]


def test_where_a_float32_body_does_not_fit_two_roundings_are_compared(near, halves, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "free_bytes", lambda *_: 1000)
    found = Precision.of(build(near, tmp_path / "cache", dtype="float16").plan)
    coarse, fine = (Precision.of(halves[dtype].plan) for dtype in ("bfloat16", "float16"))
    assert found.against == "bfloat16"
    assert 0.5 * coarse.error_nats < found.error_nats < 2 * coarse.error_nats  # made by bfloat16
    assert found.error_nats > fine.error_nats
    assert found.expected_error == 1 / 8 and "a float32 body does not fit" in str(found)


def test_a_float32_body_that_runs_out_of_memory_does_not_fit_either(near, tmp_path, monkeypatch):
    own = probe._logprobs

    def logprobs(folders, vocabulary_size, rows, dtype, against, options):
        if against == "float32":
            raise torch.OutOfMemoryError("out of memory")
        return own(folders, vocabulary_size, rows, dtype, against, options)

    monkeypatch.setattr(probe, "_logprobs", logprobs)
    assert Precision.of(build(near, tmp_path / "cache", dtype="float16").plan).against == "bfloat16"


def test_the_size_of_a_float32_body_is_that_of_its_weights(near):
    from tiny import load

    folder = near[0]["dpo"]
    assert probe.float32_bytes(resolve(str(folder))) == 4 * load(folder).num_parameters()


def test_a_body_that_overflows_in_the_sample_ends_the_build_before_its_plan(near, tmp_path, monkeypatch):
    own = RoleModel.hidden

    def hidden(self, input_ids_BT, *args):
        found = own(self, input_ids_BT, *args)
        overflows = self.dtype == torch.float16 and self.role == "reverse" and len(input_ids_BT) > 1
        return found * 1e6 if overflows else found

    monkeypatch.setattr(RoleModel, "hidden", hidden)
    with pytest.raises(NonFiniteLogits, match=r"reverse: expected finite .* for sample .* at token"):
        build(near, tmp_path / "cache", dtype="float16")
    assert not (tmp_path / "cache" / "plan.json").exists()


def test_an_interrupted_build_keeps_the_precision_of_its_plan(near, halves, tmp_path, monkeypatch):
    out = tmp_path / "cache"
    build(near, out, dtype="bfloat16", tokens_per_shard=20)
    before = Precision.of(ShardCache(out).plan)
    (out / MANIFEST_FILE).unlink()
    (out / "part-00000.arrow").unlink()
    monkeypatch.setattr(probe, "exact_logprobs", None)  # would fail if it were called again
    assert Precision.of(build(near, out, dtype="bfloat16", tokens_per_shard=20).plan) == before


# ---- what is said of it


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"angle_degrees": GOOD_DEGREES}, []),
        ({"angle_degrees": GOOD_DEGREES + 0.1}, [1]),
        ({"angle_degrees": BAD_DEGREES + 0.1}, [2]),
        ({"rounded_share": MUCH_ROUNDING}, []),
        ({"rounded_share": MUCH_ROUNDING + 0.01}, [1]),
        ({"against": None}, [1]),
        ({"dtype": "float16", "against": "bfloat16", "angle_degrees": 8 * GOOD_DEGREES}, []),
        ({"dtype": "float16", "against": "bfloat16", "angle_degrees": 8 * GOOD_DEGREES + 1}, [1]),
        ({"against": "float16", "angle_degrees": GOOD_DEGREES + 0.1}, [1]),
    ],
)
def test_the_verdict_follows_the_thresholds(changes, expected):
    assert levels(**changes) == expected


def test_the_remedy_is_the_next_finer_dtype():
    def texts(dtype):
        return " ".join(text for _, text in dataclasses.replace(MEASURED, dtype=dtype, angle_degrees=20.0).faults())

    assert "build with --dtype float16, or float32" in texts("bfloat16")
    assert texts("float16").endswith("build with --dtype float32")
    assert texts("tf32").endswith("build with --tf32 false")


def test_a_plan_keeps_its_precision_to_three_digits(tmp_path):
    plan = make_cache(tmp_path / "cache").plan
    with_precision = dataclasses.replace(plan, precision=dataclasses.replace(MEASURED, error_nats=0.0312345).to_json())
    again = Plan.from_json(json.loads(json.dumps(with_precision.to_json())), "here")
    assert Precision.of(again) == dataclasses.replace(MEASURED, error_nats=0.0312)
    assert again.sha256 != plan.sha256
    with pytest.raises(CacheDamaged, match=r"precision: expected dtype, against, .* got dtype"):
        Precision.of(dataclasses.replace(plan, precision={"dtype": "float16"}))


def test_it_is_in_the_plan_on_the_screen_in_inspect_and_in_the_students_first_lines(near, tmp_path, capsys):
    out = tmp_path / "cache"
    build(near, out, dtype="bfloat16")
    said = "bfloat16 bodies on 65 positions: l_dpo - l_reverse off by"
    assert said in one_line(capsys.readouterr().out)
    inspect([str(out)])
    shown = one_line(capsys.readouterr().out)
    assert said in shown and "bodies in bfloat16 turn the gradient by" in shown and "verdict not good" in shown
    model = str(near[0]["reference"])
    train(["--shards", str(out), "--model", model, "--output_dir", str(tmp_path / "student"), "--max_steps", "1",
           "--warmup_steps", "0",
           "--use_cpu", "true", "--report_to", "none"])  # fmt: skip
    lines = one_line(capsys.readouterr().out)
    assert said in lines and "bodies in bfloat16 turn the gradient by" in lines


def test_check_measures_it_too(near, halves, tmp_path, capsys):
    report = tmp_path / "report.json"
    check_main(["--shards", str(halves["bfloat16"].folder), "--json", str(report)])
    found = Precision(**json.loads(report.read_text())["precision"])
    built = Precision.of(halves["bfloat16"].plan)
    assert found.dtype == "bfloat16" and 0.5 < found.error_nats / built.error_nats < 2
    assert "precision bfloat16 bodies on" in one_line(capsys.readouterr().out)
    check_main(["--shards", str(halves["float32"].folder), "--json", str(report)])
    assert json.loads(report.read_text())["precision"] is None


def test_the_teacher_of_the_probe_is_the_default_one_where_it_is_served():
    both = [Pair("dpo", "reverse"), Pair("reference", "reference")]
    assert probe.default_spec(both) == TeacherSpec.preset("aligndistil")
    assert probe.default_spec(both[1:]) == TeacherSpec.preset("adaptive")
    assert probe.default_spec([Pair("dpo", "reference")]) == TeacherSpec(anchor="dpo", negative="reference")
    assert BuildOptions(models=["dpo=a", "reference=b"], data="d").served_pairs == (both[1],)


def one_line(text):
    return " ".join(text.split())
