import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure

from medlib import stats
from medlib.config import ANSWERS, resolve, run_dir
from medlib.data import core24, own_suites, sources
from medlib.data.quality import Issue
from medlib.data.synthetic import grammar
from medlib.data.variants import ABLATIONS
from medlib.evaluation import summary
from medlib.evaluation.results import Results
from medlib.feedback import reward_model
from medlib.models import loading, scoring
from medlib.models.verdict_model import VerdictModel
from medlib.reporting import show
from medlib.reporting.notebooks import benchmark as benchmark_page
from medlib.reporting.notebooks import data as data_page
from medlib.reporting.notebooks import error_analysis as error_analysis_page
from medlib.reporting.notebooks import evaluate as evaluate_page
from medlib.reporting.notebooks import quickstart as quickstart_page
from medlib.reporting.notebooks import rl as rl_page
from medlib.reporting.notebooks import train_lora as train_lora_page
from medlib.systems import text

SCENARIOS = grammar.generate("test", 108, seed=0)
# an empty mean, an undefined rate or a forgotten f-string would show as one of these
BAD_WORDS = ("nan", "None", "inf", "{", "}")


def predicted(p_correct, scenarios=SCENARIOS):
    """Predictions of these probabilities."""
    return stats.predictions_table(scenarios, pd.DataFrame({"p_correct": p_correct}))


def answers(share_right, sure=0.95, seed=0, scenarios=SCENARIOS):
    """Predictions of a made-up system that is right in about this share of the scenarios."""
    right = np.random.default_rng(seed).random(len(scenarios)) < share_right
    is_valid = np.array([s.verdict == "CORRECT" for s in scenarios])
    frame = predicted(np.where(right == is_valid, sure, 1 - sure), scenarios)
    return frame.assign(generated=frame["predicted"], parsed=frame["predicted"])


def run(share_right, ablations=True):
    """Results of a whole run."""
    parts = {
        ("constant", "heldout"): predicted(np.ones(len(SCENARIOS))),
        ("heuristics", "heldout"): predicted([text.rule(s) for s in SCENARIOS]),
        ("keyword-probe", "heldout"): answers(0.6, seed=1),
        ("medgemma", "heldout"): answers(0.5, seed=2),
        ("medgemma-lora", "heldout"): answers(share_right),
    }
    for number, ablation in enumerate(ABLATIONS if ablations else ()):
        parts["medgemma-lora", "heldout", ablation] = answers(0.5, seed=3 + number)
    return Results.join(parts)


def all_sentences(results, config):
    """Every sentence of notebooks 03 to 05 about one run."""
    tuned, base = results.of("medgemma-lora", "heldout"), results.of("medgemma", "heldout")
    score, scores = results.score("medgemma-lora", "heldout"), show.ladder(results, config)
    return {
        "paired": evaluate_page.paired_sentence(tuned, base, "the adapter", "the base"),
        "small": evaluate_page.small_sample_sentence(stats.score(tuned.head(8))),
        "verdict": evaluate_page.verdict_sentence(score),
        "generation": evaluate_page.generation_sentence(results),
        "image": evaluate_page.image_sentence(results),
        "targets": evaluate_page.targets_sentence(summary.targets(score)),
        "ladder": benchmark_page.ladder_sentence(scores),
        "modality": benchmark_page.modality_sentence(scores),
        "pair": benchmark_page.pair_sentence(results),
        "power": benchmark_page.power_sentence(score),
        "gain": error_analysis_page.gain_sentence(
            error_analysis_page.gains(error_analysis_page.with_factors(tuned, SCENARIOS))
        ),
        "error cost": error_analysis_page.error_cost_sentence(results, config),
        "calibration": error_analysis_page.calibration_sentence(tuned),
        "reliance": error_analysis_page.reliance_sentence(results),
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return resolve("tiny", model="somebody/some-model", run_dir=str(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("share_right", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("ablations", [True, False])
def test_every_sentence_reads_right_whatever_the_numbers(share_right, ablations, config):
    for name, sentence in all_sentences(run(share_right, ablations), config).items():
        assert sentence.endswith("."), name
        assert not [word for word in BAD_WORDS if word in sentence], (name, sentence)


def test_sentences_do_not_claim_what_the_numbers_do_not_show(config):
    good, poor = all_sentences(run(1.0), config), all_sentences(run(0.0), config)
    assert "**the adapter is better**" in good["paired"]
    assert "**the base is better**" in poor["paired"]
    same = answers(0.7)
    assert "do not tell them apart" in evaluate_page.paired_sentence(same, same, "a", "b")
    assert "**the image decides some of its verdicts**" in good["image"]
    assert "**nothing here shows that it uses the image**" in poor["image"]
    assert "whole interval" in good["ladder"] and "above the target" in good["ladder"]
    assert "below the target" in poor["ladder"]
    assert "no number of cases would do" in poor["power"]
    assert "There are no misses" in good["gain"]
    assert "overconfident" in poor["calibration"] and "overconfident" not in good["calibration"]
    assert all_sentences(run(1.0), config)["targets"].startswith("All 4 targets")


def test_eight_cases_are_called_too_few_and_a_thousand_are_not():
    eight = evaluate_page.small_sample_sentence(stats.score(answers(1.0).head(8)))
    assert "8 of 8 cases" in eight and "**too few to show**" in eight
    many = answers(1.0, scenarios=grammar.generate("test", 60, seed=0))
    assert "**enough to show**" in evaluate_page.small_sample_sentence(stats.score(many))


def test_a_constant_answer_is_called_one():
    score = stats.score(predicted(np.ones(len(SCENARIOS))))
    assert "hardly discriminates" in evaluate_page.verdict_sentence(score)


def test_what_a_model_of_no_verdicts_writes_counts_as_unparsed(config):
    parts = run(0.9).parts
    parts["medgemma", "heldout", ""] = parts["medgemma", "heldout", ""].drop(columns="parsed")
    base, tuned = evaluate_page.generation(Results.join(parts), config).to_dict(orient="records")
    assert base["Answers that are a verdict"].startswith("0.0")
    assert tuned["Answers that are a verdict"].startswith("100.0")


def test_solving_all_groups_of_one_kind_solves_everything():
    frame = error_analysis_page.with_factors(answers(0.7), SCENARIOS)
    gained, misses = error_analysis_page.gains(frame), int((frame["verdict"] != frame["predicted"]).sum())
    assert misses > 0
    assert gained.groupby("Grouped by")["Misses"].sum().eq(misses).all()
    assert gained["Misses"].is_monotonic_decreasing


def test_factors_are_joined_by_id_not_by_order():
    shuffled = answers(0.7).sample(frac=1, random_state=1)
    joined = error_analysis_page.with_factors(shuffled, SCENARIOS).set_index("id")
    for scenario in SCENARIOS:
        row = joined.loc[scenario.id]
        assert row["finding"] == scenario.finding
        assert row["image_finding"] == f"{scenario.modality}: {scenario.factors['image_finding']}"


def test_the_image_pairs_are_told_apart():
    scores = evaluate_page.ablation_scores(run(0.9), pair_kind="image")
    assert list(scores)[0] == "untouched base" and len(scores) == 6
    count = sum(s.factors["pair_kind"] == "image" for s in SCENARIOS)
    assert all(score["n"] == count < len(SCENARIOS) for score in scores.values())


def test_paired_tests_are_those_that_the_run_wrote(config):
    results = run(0.9)
    summary.write_metrics(config, results)
    written = json.loads((run_dir(config) / "metrics.json").read_text())["tests"]
    shown = benchmark_page.paired_tests(results, config)
    assert shown["Only adapter right"].tolist() == [test["b"] for test in written.values()]
    assert shown["Adapter against"].tolist()[0] == "Always CORRECT"


def test_core_tables_count_the_published_cases():
    cases = core24.load_facts()
    counts = data_page.core_counts(cases).set_index("Modality")
    assert counts.loc["all", "Cases"] == 24 and counts.loc["all", "CORRECT"] == 12
    assert counts.drop(index="all")["Cases"].tolist() == [6, 6, 6, 6]
    assert "undertreatment" not in counts  # none occurs
    assert counts.loc["all", "At stake, US dollars"] == sum(s.cost_impact for s in cases)
    assert len(data_page.core_list(cases)) == 24


def test_the_shortcut_is_named_in_the_core_set_and_not_in_the_generated_one():
    assert "24 of 24" in data_page.shortcut_sentence(core24.load_facts())
    assert "Nobody needs the image" not in data_page.shortcut_sentence(SCENARIOS)


def test_audit_and_overlap_are_worded_by_what_was_found():
    error = Issue("mask", "error", "6 masks")
    warning = Issue("balance", "warning", "uneven")
    assert "proves little" in data_page.audit_sentence([error, warning])
    assert "without the warnings" in data_page.audit_sentence([warning])
    assert "Nothing of this" in data_page.audit_sentence([])
    assert "Nothing of the test" in data_page.overlap_sentence({"finding": 0, "image": 0})
    assert "2 images" in data_page.overlap_sentence({"finding": 0, "image": 2})


def test_table_escapes_text_and_aligns_numbers_by_column():
    frame = pd.DataFrame({"text": ["<b>a & b</b>"], "number": [1234.5]})
    soup = BeautifulSoup(show.table(frame, "one").data, "html.parser")
    cells = soup.select("tbody td")
    assert cells[0].get_text() == "<b>a & b</b>" and cells[1].get_text() == "1,234.500"
    assert show.table(frame, "one").data == show.table(frame, "one").data  # no random id
    assert "td.col1" in soup.style.get_text() and "td.col0" not in soup.style.get_text()


def test_examples_cover_modalities_verdicts_and_a_pair():
    chosen = show.one_per_modality(SCENARIOS)
    assert len({s.modality for s in chosen}) == 4 and len({s.verdict for s in chosen}) == 2
    a, b = quickstart_page.counterfactual_pair(SCENARIOS, "image")
    assert (a.finding, a.treatment) == (b.finding, b.treatment) and a.image != b.image
    one_of_each = quickstart_page.counterfactual_pair(core24.load_facts())  # cases without twins
    assert sorted(s.verdict for s in one_of_each) == ["CORRECT", "ERROR"]


def test_a_stand_in_is_never_shown_as_medgemma(monkeypatch, config):
    assert summary.figure_names(config)["medgemma"] == "some-model, untouched"
    assert "Stand-in" not in show.disclaimer(config)
    monkeypatch.setattr(loading, "is_standin", lambda model: True)
    assert summary.figure_names(config)["medgemma"] == "some-model (stand-in), untouched"
    assert "Stand-in model" in show.disclaimer(config)


def test_sides_that_share_groups_are_said_wherever_figures_are(monkeypatch, config):
    shared = "The sides of the split share 2 groups."
    own = config.model_copy(update={"data_dir": "d", "allow_shared_groups": True})
    monkeypatch.setattr(own_suites, "of", lambda _: SimpleNamespace(sides=SimpleNamespace(stamp=shared)))
    rate = {"accuracy": stats.proportion(9, 10)}
    for said in (show.disclaimer(own), summary.headline(own, {"medgemma": rate, "medgemma-lora": rate})):
        assert shared in said
    assert shared not in show.disclaimer(own.model_copy(update={"allow_shared_groups": False}))
    assert shared not in show.disclaimer(config)


def test_loss_sentence_tells_an_early_best_from_a_late_one():
    early = [{"step": s, "eval_loss": v} for s, v in ((1, 0.9), (2, 0.5), (3, 0.7))]
    assert "the one of step 2" in train_lora_page.loss_sentence({"history": early})
    assert "still at its best" in train_lora_page.loss_sentence({"history": early[:2]})
    assert "no validation suite" in train_lora_page.loss_sentence({"history": [{"step": 1, "loss": 1.0}]})


def test_lora_is_described_by_the_configuration_that_peft_gets(config):
    rows = train_lora_page.lora_table(config).set_index("LoRA")["This run"]
    assert rows["Matrices"] == "k_proj, o_proj, q_proj, v_proj of the decoder"
    assert rows["Scale"] == "2 = alpha 32 / r"
    changed = config.model_copy(update={"lora_targets": "vision", "use_rslora": True, "use_dora": True})
    rows = train_lora_page.lora_table(changed).set_index("LoRA")["This run"]
    assert (
        "vision tower" in rows["Matrices"] and rows["Scale"] == "8 = alpha 32 / √r" and "DoRA" in rows["Variant"]
    )


def test_the_recipe_names_what_differs_from_the_defaults(config):
    recipe = train_lora_page.recipe_table(config).set_index("Setting")
    assert recipe.loc["lr", ["Stage", "Value", "Default"]].tolist() == ["Training", "0.003", "0.0002"]
    assert recipe.loc["lora_rank", "Default"] == "same"
    assert "run_dir" not in recipe.index  # changes no result


def test_the_learned_tokens_of_a_case_are_marked_and_the_image_tokens_counted(small_config):
    soup = BeautifulSoup(train_lora_page.encoded_case(small_config).data, "html.parser")
    marked = "".join(mark.get_text().strip("[]") for mark in soup("mark")).replace(" ", "")
    scenario = sources.suite(small_config, "train").scenarios[0]
    assert marked == ANSWERS[scenario.verdict].replace(" ", "") + "<end_of_turn>"
    assert "«16 image tokens»" in soup.get_text() and scenario.finding in soup.get_text()
    assert f"{len(soup('mark'))} are learned" in soup.get_text()


def test_the_likelihoods_of_one_case_add_up(small_config, nano, monkeypatch):
    model = VerdictModel(*nano[:2])
    monkeypatch.setattr(VerdictModel, "with_adapter", lambda base, adapter: base)
    case = sources.suite(small_config, "test").rows([0])
    likelihoods = evaluate_page.likelihoods_of_one_case(small_config, case)
    batch = scoring.prompt_batch(model, case.scenarios, [case.image(case.scenarios[0])])
    expected = dict(zip(ANSWERS, scoring.score_answers(model, batch)[0]))
    assert likelihoods.groupby("verdict")["logp"].sum().to_dict() == pytest.approx(expected, abs=1e-3)
    table = evaluate_page.likelihood_table(likelihoods)
    assert table["log-likelihood, ERROR"].iloc[-1] == pytest.approx(expected["ERROR"], abs=2e-3)
    p_correct = scoring.p_correct(model, case)[0]
    sentence = evaluate_page.likelihood_sentence(likelihoods, case)
    assert f"{100 * p_correct:.1f}%" in sentence and f"gold verdict is {case.scenarios[0].verdict}" in sentence


def test_the_reward_of_one_case_is_shown_step_by_step(config, monkeypatch):
    monkeypatch.setattr(reward_model, "preferred", lambda *_: np.array([0.25]))
    preference = pd.Series({"chosen": "ERROR", "rejected": "CORRECT", "severity": "critical"})
    table = rl_page.reward_table(config, None, preference)
    assert table["Reward"].tolist() == ["-2.00", "+2.00"] and table["Weight of severity critical"].eq(4).all()
    assert "with the raters" in rl_page.reward_sentence(table, preference)
    assert "against the raters" in rl_page.reward_sentence(table, pd.Series(dict(preference, chosen="CORRECT")))


def test_facts_are_worded_for_people():
    shown = show.facts({"a_b": 12345, "c": None, "d": True, "e": 0.123456}).set_index("Fact")
    assert shown["Value"].tolist() == ["12,345", "none", "yes", "0.1235"]
    assert shown.index[0] == "a b"


def test_figures_are_drawn(config):
    results = run(0.8)
    frame = error_analysis_page.with_factors(results.of("medgemma-lora", "heldout"), SCENARIOS)
    assert isinstance(show.group_figure(frame, "source"), Figure)
    assert isinstance(evaluate_page.ablation_figure(results, "image"), Figure)
    assert len(data_page.finding_sheet("mri", each=1).axes) == 3


def test_what_is_shown_where_errors_are_rare(config):
    results = run(0.95)
    shown = error_analysis_page.error_cost(results, config)
    assert len(shown) == len(results.systems("heldout"))
    always = shown.set_index("System").loc["Always CORRECT"]
    assert always["Queries"].startswith("0.0") and always["Queries that are right"].startswith("n/a")
    assert always["Errors missed"].startswith("30.0")  # 3% of 1,000
    shares = summary.by_prevalence(config, results)["Errors"].tolist()
    assert shares == ["1%", "3%", "5%", "10%", "20%", "50%"]
    curve = error_analysis_page.decision_curve(results, config)
    assert "query everything" in [text.get_text() for text in curve.legends[0].get_texts()]
    assert len(error_analysis_page.reliability(results)) == sum(
        results.has("medgemma-lora", suite) for suite in summary.SUITES
    )


def test_one_gold_verdict_shows_no_figures_at_a_prevalence(config):
    results = run(0.95)
    one = {key: part[part["verdict"] == "ERROR"] for key, part in results.parts.items()}
    results = Results.join(one)
    assert error_analysis_page.decision_curve(results, config) is None
    assert "Queries" not in error_analysis_page.error_cost(results, config)
    assert "one gold verdict only" in error_analysis_page.error_cost_sentence(results, config)
