"""The programs that minidact is timed beside: PyTorch, ONNX Runtime, OpenVINO.

Only this file imports them; they are optional (`pip install "minidact[bench]"`). Each is set up as
its users would for speed on a CPU: texts padded to the longest of a batch, inference mode, its own
way to eight bits. All run the same network from the same directory, a model with halting in full.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoint, data
from ..config import Config
from ..mechanisms import dact

OPSET = 17


def padded(sentences: list[list[int]]) -> dict[str, np.ndarray]:
    """A model's inputs, int64 (B, longest), from lists of token ids."""
    ids = np.zeros((len(sentences), max(map(len, sentences))), np.int64)
    mask = np.zeros_like(ids)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)], mask[row, : len(sentence)] = sentence, 1
    return {"input_ids": ids, "attention_mask": mask}


class Peer:
    """What all of them do alike; `answer` (inputs -> probabilities) is their own."""

    def __init__(self, directory: str):
        path = Path(directory)
        self.config = checkpoint.read_config(path)
        self.tokenizer = checkpoint.read_tokenizer(path, self.config)

    def prepare(self, sentences: list[list[int]]) -> Any:
        return padded(sentences)

    def answer(self, inputs: Any) -> np.ndarray:
        raise NotImplementedError

    def label(self, texts: list[str]) -> np.ndarray:
        """From texts to classes (B,)."""
        sentences = [e.ids.tolist() for e in data.encode(self.tokenizer, texts)]
        return self.answer(self.prepare(sentences)).argmax(1)


class PyTorch(Peer):
    """transformers' BERT in eager mode, with PyTorch's attention. bfloat16: in that precision."""

    def __init__(self, directory: str, threads: int, bfloat16: bool = False):
        import torch

        super().__init__(directory)
        torch.set_num_threads(threads)
        self.torch, self.kind = torch, torch.bfloat16 if bfloat16 else torch.float32
        self.model = torch_model(directory, self.config).to(self.kind).eval()

    def prepare(self, sentences):
        return {k: self.torch.from_numpy(v) for k, v in super().prepare(sentences).items()}

    def answer(self, inputs):
        with self.torch.inference_mode():
            return self.model(**inputs).float().numpy()

    def train(self, inputs) -> None:
        """Does one step of AdamW on all parameters."""
        torch, model = self.torch, self.model.model.train()
        if not hasattr(self, "optimizer"):
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        labels = torch.arange(len(inputs["input_ids"])) % 2
        model(**inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def torch_model(directory: str, config: Config):
    """The network in a directory as a module: input_ids, attention_mask (B, n) -> (B, Y)."""
    import torch
    from transformers import BertForSequenceClassification, BertModel

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = BertForSequenceClassification.from_pretrained(directory)

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.softmax(-1)

    class Halting(torch.nn.Module):
        """All layers, and what dact.py says of their units; nothing stops."""

        def __init__(self):
            super().__init__()
            self.model = BertModel.from_pretrained(directory, add_pooling_layer=False)
            _, params, _ = checkpoint.load(directory)
            for name, array in params.items():
                if name.startswith(dact.PREFIX):
                    self.register_buffer(name.replace(".", "_"), torch.from_numpy(array))

        def linear(self, x, name):
            weight, bias = (getattr(self, f"{name}.{kind}".replace(".", "_"))
                            for kind in ("weight", "bias"))  # fmt: skip
            return torch.nn.functional.linear(x, weight, bias)

        def forward(self, input_ids, attention_mask):
            how = {"input_ids": input_ids, "attention_mask": attention_mask}
            states = self.model(**how, output_hidden_states=True).hidden_states[1:]
            mask, a, p = attention_mask[:, :, None].to(states[0].dtype), 0.0, 1.0
            for layer, x in enumerate(states):
                mean = (x * mask).sum(1) / mask.sum(1)
                s, name = (mean if config.summary == "mean" else x[:, 0]), dact.unit_name(layer)
                t = self.linear(s, f"{name}.trunk").relu()
                y = self.linear(t, f"{name}.classifier").softmax(-1)
                if config.mechanisms["halting"].sees_confidence:
                    rest = (1 - y.max(1, keepdim=True).values).clamp(min=dact.CONFIDENCE_FLOOR)
                    t = torch.cat([t, rest.log()], 1)
                a = p * y + (1 - p) * a
                p = self.linear(t, f"{name}.halting").sigmoid() * p
            return a

    return Halting() if "halting" in config.mechanisms else Plain()


class Exported(Peer):
    """PyTorch's model, exported to ONNX once for all who run it."""

    def __init__(self, directory: str):
        super().__init__(directory)
        self.path = Path(directory) / "model.onnx"
        if not self.path.exists():
            self._export(directory)

    def _export(self, directory):
        import torch

        module = torch_model(directory, self.config).eval()
        module.model.set_attn_implementation("eager")  # the exporter understands this attention
        ids, names = torch.ones((2, 8), dtype=torch.long), ["input_ids", "attention_mask"]
        axes = {name: {0: "batch", 1: "tokens"} for name in names}
        how = {"input_names": names, "dynamic_axes": axes, "opset_version": OPSET}
        torch.onnx.export(module, (ids, ids), self.path, dynamo=False, **how)


class OnnxRuntime(Exported):
    """ONNX Runtime's CPU provider. int8: by its own dynamic quantisation, a scale per output."""

    def __init__(self, directory: str, threads: int, int8: bool = False):
        import onnxruntime

        super().__init__(directory)
        path = self._quantised() if int8 else self.path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def _quantised(self):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = self.path.with_name("int8.onnx")
        quantize_dynamic(self.path, path, per_channel=True, weight_type=QuantType.QInt8)
        return path

    def answer(self, inputs):
        return self.session.run(None, inputs)[0]


class OpenVino(Exported):
    """OpenVINO on the CPU. precision: "f32", "bf16", or "int8" by nncf, after training."""

    def __init__(self, directory: str, threads: int, precision: str = "f32"):
        import openvino

        super().__init__(directory)
        model = openvino.convert_model(self.path)
        if precision == "int8":
            model = self._quantised(model)
        how = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.compiled = openvino.compile_model(model, "CPU", how)

    def _quantised(self, model):
        """Its scales are found on the texts in calibration.json (workers.py writes it)."""
        import nncf

        texts = json.loads(self.path.with_name("calibration.json").read_text())
        samples = nncf.Dataset([self.prepare([text]) for text in texts])
        return nncf.quantize(model, samples, model_type=nncf.ModelType.TRANSFORMER)

    def answer(self, inputs):
        return self.compiled(inputs)[0]
