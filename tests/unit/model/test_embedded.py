"""The embedded model: its files, its tokenizer and what its corpus promises."""

import random
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from farstep_model.embedded import MODEL_NAME, corpus, model_dir

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(model_dir())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_dir())


def chat(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def test_name_is_that_of_a_model_hub() -> None:
    assert MODEL_NAME == "farstep/tiny"


def test_weights_are_small_and_complete() -> None:
    assert {path.name for path in model_dir().iterdir()} == FILES
    assert sum(path.stat().st_size for path in model_dir().iterdir()) < 5_000_000


def test_corpus_needs_no_torch() -> None:
    check = (
        "import sys; from farstep_model.embedded import corpus; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_model_loads_as_a_plain_transformers_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert model.config.model_type == "qwen3"
    assert model.config.max_position_embeddings == 2048
    assert model.config.vocab_size == len(tokenizer)
    assert model.num_parameters() < 1_500_000


def test_special_tokens_are_those_of_chatml(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "text", ["Return a copy.", "  two\n\tlines ", "naïve café — 東京 🐍", "12+345=", "", "\x00\x7f"]
)
def test_tokenizer_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer.encode("1234567890")) == 10


def test_chat_template_renders_every_role(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "12+34?"},
        {"role": "assistant", "content": "46"},
    ]
    rendered = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n12+34?<|im_end|>\n"
        "<|im_start|>assistant\n46<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(messages, tokenize=False) == rendered
    assert chat(tokenizer, "hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("skill", "right"), [("reverse", "dnomla"), ("upper", "ALMOND"), ("repeat", "almond almond")])
def test_model_knows_the_word_skills(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, skill: str, right: str
) -> None:
    inputs = tokenizer(chat(tokenizer, f"{skill} almond"), return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == right


def test_worked_answer_shows_the_carry() -> None:
    assert corpus.Addition(47, 38).question == "47+38?"
    assert corpus.Addition(47, 38).worked == "7+8+0=15 4+3+1=8 so 85"
    assert corpus.Addition(90, 27).worked == "0+7+0=7 9+2+0=11 so 117"


def test_worked_answers_are_right_and_hasty_ones_wrong() -> None:
    for addition in corpus.pretraining_additions() + corpus.heldout_additions():
        assert corpus.reward(addition.question, addition.worked) == 1.0
        assert corpus.reward(addition.question, addition.hasty) == 0.0


def test_guesses_are_seldom_right() -> None:
    rng = random.Random(0)
    guesses = [corpus.Addition(47, 38).guess(rng) for _ in range(2000)]
    assert 0.03 < guesses.count("85") / 2000 < 0.08
    assert guesses.count("75") / 2000 > 0.6


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("85", 1.0),
        ("7+8+0=15 4+3+1=8 so 85", 1.0),
        ("so 85.", 1.0),
        ("75", 0.0),
        ("85 or 86", 0.0),
        ("", 0.0),
        ("x", 0.0),
    ],
)
def test_reward_reads_the_last_number(answer: str, expected: float) -> None:
    assert corpus.reward("47+38?", answer) == expected


def test_word_task_refuses_an_unknown_skill() -> None:
    assert corpus.word_task("sort", "banjo") == ("sort banjo", "abjno")
    with pytest.raises(ValueError, match="unknown skill 'vowels'"):
        corpus.word_task("vowels", "banjo")


def test_additions_are_split() -> None:
    seen, unseen = set(corpus.pretraining_additions()), set(corpus.heldout_additions())
    assert not seen & unseen
    assert len(seen) + len(unseen) == 90 * 90
    assert 900 < len(unseen) < 1130


def test_prose_is_split() -> None:
    seen = set(corpus.pretraining_prose())
    tune, test = set(corpus.heldout_prose("tune")), set(corpus.heldout_prose("test"))
    assert not seen & (tune | test)
    assert not tune & test
    assert len(seen) > 5000
    assert len(tune) > 300
    assert len(test) > 80
