"""A loss of one's own: cross-entropy that leaves alone what the model is sure of already. Needs torch here.

The log-probabilities come from the worker as leaf tensors; what torch says of each goes back to it as a weight.

python examples/trainers/own_loss.py         # or: farstep train examples/trainers/own_loss.py --dry-run
"""

import torch

from farstep.trainers import SFTTrainer

WORDS = ["apple", "river", "stone", "cloud", "tiger", "lemon", "piano", "garden"]


class FocalTrainer(SFTTrainer):
    """Lin et al., arXiv:1708.02002: −(1 − p)^γ log p, as a mean over the tokens that are learnt."""

    name = "focal"  # from here on found by it: `type: focal`, with `code: own_loss.py`
    gamma = 2.0

    def loss(self, batch):
        logprobs = torch.cat(self.forward(batch))
        return -((1 - logprobs.exp()) ** self.gamma * logprobs).sum() / self.normalizer(batch)


trainer = FocalTrainer(
    {
        "name": "focal",
        "model": {"base": "farstep/tiny", "lora": {"r": 8}},
        "epochs": 10,
        "batch_size": 4,
        "optimizer": {"lr": 4e-3},
    },
    train_data=[{"prompt": f"first letter of {word}", "response": word[0]} for word in WORDS],
    callbacks=[{"on_log": lambda event: print(event["step"], f"{event['loss']:.4f}")}],
)

if __name__ == "__main__":
    trainer.fit()
