"""
A small language model
======================

This transformer predicts the next character of a text. The loss is a mean over tokens, and ignored padding does not
count.
"""

import torch
from torch import nn

import hesspec

torch.manual_seed(0)
text = (
    "the hessian of the loss has a few large eigenvalues and a bulk around zero. "
    "the outliers come from the gauss newton part, and the bulk shrinks with the number of samples. "
) * 8
characters = sorted(set(text))
tokens = torch.tensor([characters.index(character) for character in text])
windows = tokens[: len(tokens) // 33 * 33].view(-1, 33)
inputs, targets = windows[:, :-1], windows[:, 1:]


class LanguageModel(nn.Module):
    """Embeddings, one layer of causal attention, and logits (samples, characters, positions)."""

    def __init__(self, size, width=16, context=32):
        super().__init__()
        self.embedding, self.place = nn.Embedding(size, width), nn.Embedding(context, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, size)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        embedded = self.embedding(tokens) + self.place(torch.arange(length))
        return self.head(self.layer(embedded, src_mask=mask, is_causal=True)).transpose(1, 2)


model = LanguageModel(len(characters))
loss_fn, optimizer = nn.CrossEntropyLoss(ignore_index=-100), torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(40):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()

# %%
hessian = hesspec.Hessian(model.eval(), loss_fn, [(inputs, targets)])
spectrum = hesspec.spectrum(hessian, steps=48, progress=False)
print(spectrum)

# %%
# As in many language models, there may be no gap between the largest eigenvalues and the others: the scree plot shows
# how they decay.

spectrum.plot("scree")
