"""The two T5 v1.1 models: their shapes, their loss, and the directories that they are exported to."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5Config
from transformers import T5ForConditionalGeneration as T5

from translation_pair.data import DEVICE, EOS, PAD, VOCAB_SIZE, Batch

SHAPES = {
    "target": {"d_model": 256, "d_ff": 768, "num_heads": 8, "d_kv": 32, "num_layers": 4, "num_decoder_layers": 3},
    "draft": {"d_model": 96, "d_ff": 256, "num_heads": 4, "d_kv": 32, "num_layers": 1, "num_decoder_layers": 1},
}


def new_model(role: str) -> T5:
    """Build an untrained T5 v1.1 whose first predictions are close to uniform."""
    config = T5Config(
        **SHAPES[role],
        vocab_size=VOCAB_SIZE,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = T5(config)
    # Newer transformers tie the head of a new T5 to its embeddings whatever the configuration says.
    model.lm_head.weight = nn.Parameter(torch.randn(VOCAB_SIZE, config.d_model) * 0.02)
    nn.init.normal_(model.shared.weight, std=0.3)
    return model.to(DEVICE)


def stack_states(model: T5, source: Tensor, inputs: Tensor) -> Tensor:
    """Run encoder and decoder, up to the vocabulary projection."""
    mask = source.ne(PAD)
    memory = model.encoder(input_ids=source, attention_mask=mask).last_hidden_state
    decoded = model.decoder(
        input_ids=inputs, encoder_hidden_states=memory, encoder_attention_mask=mask, use_cache=False
    )
    return decoded.last_hidden_state


compiled_stack_states = torch.compile(stack_states, dynamic=True)


def label_states(model: T5, batch: Batch) -> Tensor:
    """Return the decoder's states where there is a label: compiled and in bfloat16 while training."""
    if model.training:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            states = compiled_stack_states(model, batch.source, batch.inputs)
    else:
        states = stack_states(model, batch.source, batch.inputs)
    return states[batch.labels.ne(PAD)]


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of the vocabulary projection, in chunks that stay in cache.

    The forward pass makes the gradients too, so that no chunk's logits are kept. Products run in
    bfloat16, softmax and loss in float32. Labels are token ids or, for distillation, the teacher's
    states and head weight.
    """

    CHUNK = 256 if DEVICE.type == "cpu" else 16384

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss; keep the gradients of `states` and `weight`."""
        half, head = states.bfloat16(), weight.bfloat16()
        grad_states, grad_weight = torch.empty_like(half), torch.zeros_like(weight)
        total = torch.zeros((), device=states.device)
        for start in range(0, len(half), HeadLoss.CHUNK):
            part = slice(start, start + HeadLoss.CHUNK)
            log_q = (half[part] @ head.T).float().log_softmax(-1)
            if isinstance(labels, tuple):
                p = (labels[0][part].bfloat16() @ labels[1].bfloat16().T).float().softmax(-1)
                total -= torch.dot(p.flatten(), log_q.flatten())
                grad = log_q.exp_().sub_(p)
            else:
                ids = labels[part, None]
                total -= log_q.gather(1, ids).sum()
                grad = log_q.exp_().scatter_add_(1, ids, torch.full_like(log_q[:, :1], -1.0))
            grad = grad.div_(len(half)).bfloat16()
            grad_states[part] = grad @ head
            grad_weight += grad.T @ half[part]
        ctx.save_for_backward(grad_states.to(states.dtype), grad_weight)
        return total / len(half)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale the kept gradients."""
        grad_states, grad_weight = ctx.saved_tensors
        return grad_states * grad, grad_weight * grad, None


def batch_loss(model: T5, batch: Batch, teacher: T5 | None) -> Tensor:
    """Cross-entropy per token against the references or, given a teacher, against its distributions."""
    labels: Tensor | tuple[Tensor, Tensor] = batch.labels[batch.labels.ne(PAD)]
    if teacher is not None:
        with torch.no_grad():
            labels = (label_states(teacher, batch), teacher.lm_head.weight)
    return HeadLoss.apply(label_states(model, batch), model.lm_head.weight, labels)


def export(model: T5, role: str, out: Path) -> None:
    """Write a Hugging Face directory: bfloat16 weights, configuration, piece model."""
    folder = out / role
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {"decoder_start_token_id": PAD, "pad_token_id": PAD, "eos_token_id": EOS}
    config = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": VOCAB_SIZE,
        **SHAPES[role],
        **tokens,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        "initializer_factor": 1.0,
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(tokens, indent=2) + "\n")
    (folder / "spiece.model").write_bytes((out / "spiece.model").read_bytes())
    # The stacks' embed_tokens are `shared` itself.
    names = [name for name in model.state_dict() if "embed_tokens" not in name]
    weights = {name: model.state_dict()[name].bfloat16().cpu() for name in names}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(role: str, out: Path) -> T5:
    """Load an exported model, in float32."""
    model = new_model(role)
    model.load_state_dict(load_file(out / role / "model.safetensors"), strict=False)
    return model.requires_grad_(False)
