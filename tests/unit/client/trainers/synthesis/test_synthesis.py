"""Synthesis: selection, the three ways of making items, and the pipeline."""

import collections
import json

import pytest

from farstep.trainers import ConfigError, DataError, RegistryError, TrainerError
from farstep.trainers.synthesis import (
    AugmentSynthesizer,
    LLMSynthesizer,
    Made,
    SynthesisConfig,
    Synthesizer,
    TemplateSynthesizer,
    add_noise,
    deduplicate,
    filter_by_score,
    split,
    swap_in_out,
    synthesize,
)
from farstep.trainers.synthesis.llm import item_of

ITEMS = [{"input": f"question {n}", "output": f"answer {n}", "score": n / 10} for n in range(10)]


def test_scores_under_the_limit_are_left_out_and_items_without_one_stay():
    items = [*ITEMS, {"input": "x"}, {"input": "y", "score": None}]
    assert [item.get("score") for item in filter_by_score(items, 0.7)] == [0.7, 0.8, 0.9, None, None]
    assert filter_by_score(items, None) == items
    with pytest.raises(DataError, match=r"items\[0\].score: 'high' is no number"):
        filter_by_score([{"score": "high"}], 0.5)


def test_duplicates_go_by_their_key_and_the_first_stays():
    items = [{"q": "a", "n": 1}, {"q": "a", "n": 2}, {"n": 1, "q": "a"}, {"q": "A", "n": 3}]
    assert deduplicate(items) == [items[0], items[1], items[3]]
    assert deduplicate(items, "q") == [items[0], items[3]]
    assert deduplicate(items, ("q", "n")) == [items[0], items[1], items[3]]
    assert deduplicate(items, lambda item: item["q"].lower()) == [items[0]]
    with pytest.raises(DataError, match=r"items\[0\].answer: missing"):
        deduplicate(items, "answer")


@pytest.mark.parametrize(("number", "ratio", "num_train"), [(10, 0.9, 9), (100, 0.25, 25), (7, 0.5, 3), (10, 1.0, 10),
                                                            (3, 0.9, 3), (1, 0.5, 1), (1000, 0.999, 999)])  # fmt: skip
def test_ratios_are_exact_and_seeds_repeat(number, ratio, num_train):
    items = [{"n": n} for n in range(number)]
    train, test = split(items, ratio, seed=3)
    assert abs(len(train) - num_train) <= (1 if number == 7 else 0)
    assert sorted([*train, *test], key=lambda item: item["n"]) == items
    assert train == sorted(train, key=lambda item: item["n"])
    assert split(items, ratio, seed=3) == (train, test)


def test_another_seed_parts_otherwise_and_wrong_ratios_are_refused():
    assert len({str(split(ITEMS, 0.5, seed=seed)[0]) for seed in range(5)}) > 1
    for ratio in (0, -0.1, 1.1, "half", True, float("nan")):
        with pytest.raises(DataError, match="train_ratio"):
            split(ITEMS, ratio, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_train_and_test_share_nothing(seed):
    items = [{"q": n % 13, "n": n} for n in range(100)]
    train, test = split(items, 0.8, seed=seed, key="q")
    assert not {item["q"] for item in train} & {item["q"] for item in test}
    assert len(train) + len(test) == 100
    assert 10 <= len(test) <= 24


def test_templates_are_filled_with_every_combination_once():
    maker = TemplateSynthesizer({"q": "{a}+{b}?", "about": '{"json": 1}', "n": 3}, {"a": range(3), "b": ["x", "y"]})
    config = {"strategy": "template", "num_samples": 6, "train_ratio": 0.5, "seed": 5}
    result = synthesize([], config, synthesizer=maker)
    assert sorted(item["q"] for item in result.items) == ["0+x?", "0+y?", "1+x?", "1+y?", "2+x?", "2+y?"]
    assert {(item["about"], item["n"]) for item in result.items} == {('{"json": 1}', 3)}
    assert (len(result.train), len(result.test)) == (3, 3)
    assert synthesize([], config, synthesizer=maker) == result
    assert synthesize([], config | {"seed": 6}, synthesizer=maker).items != result.items
    more = synthesize([], config | {"num_samples": 8}, synthesizer=maker)
    assert [failure.index for failure in more.failures] == [6, 7]
    assert "no more than 6 combinations" in more.failures[0].reason
    with pytest.raises(DataError, match="b: there are no values"):
        TemplateSynthesizer({"q": "{a}{b}"}, {"a": [1]})


def test_a_template_of_very_many_combinations():
    values = {name: [str(number) for number in range(1000)] for name in "abcdefgh"}
    maker = TemplateSynthesizer({"q": "".join(f"{{{name}}}-" for name in "abcdefgh")}, values)
    result = synthesize([], {"strategy": "template", "num_samples": 300}, synthesizer=maker)
    assert len({item["q"] for item in result.items}) == 300


def test_input_and_output_change_places():
    assert swap_in_out({"prompt": "a", "response": "b", "n": 1}) == {"prompt": "b", "response": "a", "n": 1}
    assert swap_in_out({"x": 1, "y": 2}, input_key="x", output_key="y") == {"x": 2, "y": 1}
    with pytest.raises(DataError, match="output: missing"):
        swap_in_out({"input": "a"})


def test_noise_changes_as_many_letters_as_it_says_and_no_others():
    text = "The quick brown fox, 12 times: jumps over the lazy dog!"
    item = {"input": text, "output": "x"}
    noisy = add_noise(item, seed=1, rate=0.2)
    assert noisy == add_noise(item, seed=1, rate=0.2)
    assert noisy != add_noise(item, seed=2, rate=0.2)
    assert noisy["output"] == "x"
    lost = collections.Counter(text)
    lost.subtract(noisy["input"])
    assert noisy["input"] != text
    assert sum(abs(number) for number in lost.values()) <= 9  # a fifth of 43 letters; a swap changes no counts
    assert add_noise(item, seed=1, rate=0.0) == item
    assert add_noise({"text": "a"}, seed=1) == {"text": "aa"}
    for changes, reason in [({"rate": 2}, "rate"), ({"key": "n"}, "n: a NoneType, not a text")]:
        with pytest.raises(DataError, match=reason):
            add_noise(item, seed=1, **changes)


def test_augmented_items_are_new_and_of_all_kinds():
    config = {"strategy": "augment", "num_samples": 25, "train_ratio": 0.8, "keep_given": False}
    result = synthesize(ITEMS, config, augmentations=["add_noise", "swap_in_out"])
    assert len(result.items) == 25
    assert not {json.dumps(item) for item in result.items} & {json.dumps(item) for item in ITEMS}
    assert sum(item["input"].startswith("answer") for item in result.items) == 10  # there are no more of these
    assert (len(result.train), len(result.test)) == (20, 5)
    assert synthesize(ITEMS, config, augmentations=["add_noise", "swap_in_out"]) == result
    maker = AugmentSynthesizer([lambda item, seed: item, "add_noise"])
    only = synthesize([{"input": "a"}], config | {"num_samples": 2}, synthesizer=maker)
    assert [failure.reason for failure in only.failures] == ["no augmentation gives anything new"]
    with pytest.raises(DataError, match="there is no augmentation 'shout'"):
        AugmentSynthesizer(["shout"])
    with pytest.raises(DataError, match="nothing to augment"):
        synthesize([], config, augmentations=["add_noise"])


@pytest.mark.parametrize(
    "text", ['{"q": "a", "n": 1}', 'Sure! ```json\n{"q": "a", "n": 1}\n``` there', '{x} {"q": "a", "n": 1}{']
)
def test_an_item_is_found_in_an_answer(text):
    assert item_of(text, ("q", "n")) == {"q": "a", "n": 1}


@pytest.mark.parametrize(("text", "reason"), [("no", "no JSON object"), ("{", "no JSON"), ('{"q": ""}', "no 'q'")])
def test_an_answer_without_an_item(text, reason):
    with pytest.raises(ValueError, match=reason):
        item_of(text, ("q",))


def writer(messages, seed=None):
    """Writes an item from the seed alone; every fifth item fails for good, every third is spoilt at first."""
    number, attempt = seed // 64 % 1_000, seed % 64
    index = (number - 42 * 1_000_003 % 1_000) % 1_000
    if index % 5 == 4 or (index % 3 == 0 and attempt == 0):
        return "I would rather not."
    return json.dumps({"input": f"made {index}", "output": "yes"})


def test_a_model_makes_items_in_order_and_failures_are_listed():
    given = [{"input": item["input"], "output": item["output"]} for item in ITEMS[:4]]
    config = {"num_samples": 10, "train_ratio": 0.75, "keep_given": False}
    maker = LLMSynthesizer(writer, retry_delay_s=0.0)
    result = synthesize(given, config, synthesizer=maker)
    assert [item["input"] for item in result.items] == [f"made {index}" for index in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert [(failure.index, failure.text) for failure in result.failures] == [
        (4, "I would rather not."), (9, "I would rather not.")]  # fmt: skip
    assert "no JSON object" in result.failures[0].reason
    assert (len(result.train), len(result.test)) == (6, 2)
    assert (result.metadata["made"], result.metadata["failed"]) == (8, 2)
    assert synthesize(given, config, synthesizer=maker) == result
    with pytest.raises(DataError, match="nobody knows what an item is like"):
        synthesize([], config, chat=writer)
    with pytest.raises(TrainerError, match="none of 10 items could be made, first: ValueError: there is no JSON"):
        synthesize(given, config, synthesizer=LLMSynthesizer(lambda messages: "no", retry_delay_s=0.0))


def test_the_examples_are_chosen_by_the_seed():
    asked = []
    maker = LLMSynthesizer(lambda messages: asked.append(messages) or '{"input": "a", "output": "b"}', num_examples=2,
                           max_running=1)  # fmt: skip
    for seed in (1, 1, 2):
        synthesize(ITEMS, {"num_samples": 3, "seed": seed}, synthesizer=maker)
    texts = [messages[-1]["content"] for messages in asked]
    assert texts[:3] == texts[3:6] != texts[6:]
    assert len(set(texts[:3])) == 3
    assert all(text.count('"input"') == 2 for text in texts)


def test_the_pipeline_filters_and_dedupes_before_and_after():
    class Repeats(Synthesizer):
        async def make(self, given, num_samples, *, seed):
            assert [item["input"] for item in given] == ["b", "c"]
            return Made([{"input": "b", "score": 1.0}, {"input": "new", "score": 1.0}, {"input": "bad", "score": 0.1}])

    items = [{"input": "a", "score": 0.1}, {"input": "b", "score": 0.9}, {"input": "b", "score": 0.8}, {"input": "c"}]
    config = {"strategy": "mine", "num_samples": 3, "min_score": 0.5, "dedupe_key": "input", "train_ratio": 1.0}
    result = synthesize(items, config, synthesizer=Repeats())
    assert [item["input"] for item in result.items] == ["b", "c", "new"]
    assert result.train == result.items
    assert result.metadata == {"strategy": "Repeats", "seed": 42, "given": 4, "made": 3, "failed": 0, "filtered": 2,
                               "duplicates": 2}  # fmt: skip


def test_wrong_settings_are_named():
    for settings, place in [({"train_ratio": 0}, "train_ratio"), ({"train_ratio": 1.5}, "train_ratio"),
                            ({"num_sample": 3}, "num_sample.*did you mean 'num_samples'"),
                            ({"num_samples": -1}, "num_samples")]:  # fmt: skip
        with pytest.raises(ConfigError, match=place):
            SynthesisConfig(**settings)
    with pytest.raises(RegistryError, match=r"no synthesizer 'lm'.*'llm'"):
        synthesize(ITEMS, {"strategy": "lm"})
    with pytest.raises(DataError, match="strategy 'llm'"):
        synthesize(ITEMS, {"strategy": "llm"}, chats=writer)
    with pytest.raises(DataError, match=r"items\[1\]: a str"):
        synthesize([{}, "x"], {"strategy": "augment"})
    assert (SynthesisConfig().num_samples, SynthesisConfig().train_ratio) == (10, 0.9)
