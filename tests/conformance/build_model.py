"""Build the model that the conformance suite has a real vLLM serve: `build_model.py FOLDER`.

It is a Qwen2 of 2 million random weights, made offline in seconds. Only its output head is
wired: whatever it was asked, it says one sentence, or makes one tool call when the template asks
for that, and stops. Where a grammar holds it (a JSON schema, a forced tool call) it closes what is
open as soon as it may. So a real server's answers end by themselves, are cut where a test cuts
them, and carry tool calls that nothing forced.

Runs in vLLM's environment, the only one with torch, transformers and tokenizers.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
PAD, TURN, END, SAY, CALL = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|say|>", "<|call|>"
# A piece is one token and no piece comes twice: the head knows one successor for a token.
SENTENCE = [
    *["I", " am", " wired", " to", " say", " one"],
    *[" short", " sentence", ", and", " then", " stop."],
]
TOOL_CALL = [
    *["<tool_call>", '\n{"name": ', '"get_weather"', ', "arguments": {'],
    *['"city": ', '"Paris"', "}}\n", "</tool_call>"],
]
CLOSERS = ['"', "}", "]"]

HIDDEN_SIZE = 128
CONTEXT_TOKENS = 4096
# Some milliseconds for a token: a test has to meet a request while it runs.
LAYERS = 12
# Far enough apart to be certain at every temperature that the suite sends.
WIRED_LOGIT = 60.0
CLOSER_LOGIT = 25.0


def build(folder: Path) -> None:
    """Write weights, tokenizer and chat template into `folder`, as vLLM wants to find them."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    model = random_model(tokenizer)
    for line in ([SAY, *SENTENCE, END], [CALL, *TOOL_CALL, END]):
        wire(model, tokenizer.convert_tokens_to_ids(line))
    favour(model, tokenizer.convert_tokens_to_ids(CLOSERS))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE trained on the template: it spells anything, JSON in few tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[PAD, TURN, END, SAY, CALL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEMPLATE.read_text(), __doc__], trainer)
    bpe.add_tokens([AddedToken(piece, normalized=False) for piece in SENTENCE + TOOL_CALL])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT_TOKENS,
        chat_template=TEMPLATE.read_text(),
        clean_up_tokenization_spaces=False,
    )


def random_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Return a Qwen2 for the tokenizer, its head still silent: every token equally likely."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with torch.no_grad():
        # Large beside what the random layers add, so the last state still points at its token.
        model.model.embed_tokens.weight.normal_()
        # The same in every state: what `favour` holds on to.
        model.model.embed_tokens.weight[:, 0] = 3.0
        model.lm_head.weight.zero_()
    return model


@torch.no_grad()
def wire(model: Qwen2ForCausalLM, line: Sequence[int]) -> None:
    """Make every token of `line` call for the one behind it."""
    directions = model.model.embed_tokens.weight.clone()
    directions[:, 0] = 0.0
    directions = torch.nn.functional.normalize(directions, dim=1)
    for token, successor in pairwise(line):
        # The head sees states of length sqrt(HIDDEN_SIZE): the final norm makes them so.
        model.lm_head.weight[successor] += directions[token] * WIRED_LOGIT / HIDDEN_SIZE**0.5


@torch.no_grad()
def favour(model: Qwen2ForCausalLM, tokens: Sequence[int]) -> None:
    """Make `tokens` likelier than all but a wired successor, whatever came before."""
    model.lm_head.weight[list(tokens), 0] = CLOSER_LOGIT / 3.0


if __name__ == "__main__":
    build(Path(sys.argv[1]))
