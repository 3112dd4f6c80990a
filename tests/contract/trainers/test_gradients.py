"""A loss of one's own against plain torch and peft: the same model, the same loss, the same gradient and step."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from farstep.trainers import SFTTrainer
from farstep_model.embedded import model_dir
from tests.support.trainees import Recorder, rows, settings


def curved(logprobs, weights):
    """No multiple of the cross-entropy, and different for each row."""
    return sum((index + 1) * (w * p**2).sum() for index, (p, w) in enumerate(zip(logprobs, weights, strict=True))) / 7


class Curved(SFTTrainer):
    def loss(self, batch):
        return curved(self.forward(batch), [torch.tensor(row.loss_mask) for row in batch])


def local_logprobs(model, row):
    """[T], 0 for the first token."""
    ids = torch.tensor([row.tokens])
    found = model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
    return torch.cat([torch.zeros(1), found])


def test_the_workers_gradient_is_that_of_torch(service, tmp_path):
    data = rows(3)
    # a first step moves the fresh adapter, whose one half is zero and has no gradient into the other
    config = settings(tmp_path, batch_size=3, epochs=2, optimizer={"lr": 1e-2, "grad_clip": 0}, data={"shuffle": False})
    events, losses = Recorder(), []
    trainer = Curved(config, client=service, train_data=data, event_sinks=[events])
    with trainer:
        trainer.init()
        trainer.step(data)
        folder = trainer.save_checkpoint(tmp_path / "adapter")
        losses.append(trainer.step(data))
    base = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
    loss = curved([local_logprobs(model, row) for row in data], [torch.tensor(row.loss_mask) for row in data])
    loss.backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
    # fp32; the worker multiplies through oneDNN and in another order
    assert losses[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert losses[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)


def test_a_merged_model_says_what_the_sampler_says(service, tmp_path):
    data = [{"prompt": f"{word}?", "response": word[::-1]} for word in ("apple", "river", "stone", "cloud")]
    said = {}

    def on_checkpoint(event, infer):
        if event["kind"] == "state":
            said["answer"] = infer("apple?", max_tokens=6, temperature=0)

    events = Recorder()
    config = settings(
        tmp_path,
        epochs=6,
        optimizer={"lr": 1e-2},
        checkpoint=[{"type": "state"}, {"type": "export", "format": "merged"}],
    )
    watch = {"on_checkpoint": on_checkpoint}
    SFTTrainer(config, client=service, train_data=data, event_sinks=[events], callbacks=[watch]).fit()
    exported = next(event["path"] for event in events.of("checkpoint") if event["kind"] == "export")
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    prompt = tokenizer(said["answer"].prompt, return_tensors="pt", add_special_tokens=False)
    ids = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == said["answer"].completion
