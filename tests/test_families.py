"""Every model family that has a preset: load, train, save, reload, merge and generate, on tiny models, in float32, 4-bit and 8-bit."""
import pytest
import torch
import transformers
import yaml
from peft import PeftModel
from safetensors.torch import load_file

import families

from llmlab.models.presets import MODELS
from llmlab.models.adapters import add_lora, add_tokens, check_targets, choose_targets, grow_embeddings, tied
from llmlab.models.checkpoints import load_base_model, locate_model, make_quantization, quiet_transformers
from llmlab.models.testing import save_tiny_checkpoint, tiny_model, tiny_tokenizer

FAMILIES = ["llama", "gpt_neox", "qwen2", "qwen3", "mistral", "phi3", "exaone4", "hyperclovax", "gemma3_text", "gemma3", "gemma4_text", "gemma4",
            "deepseek_v3", "solar_open", "exaone_moe", "axk1"]
CASES = [
    (family, precision, None) for family in FAMILIES for precision in ("float32", "4-bit")
] + [("llama", "8-bit", None)]
MIXTURES = ["mixtral", "qwen2_moe", "gpt_oss", "solar_open", "deepseek_v3", "axk1"]
# with the experts
CASES += [(family, precision, "all-linear") for family in MIXTURES for precision in ("float32", "4-bit")]
TOKENS = torch.randint(3, 512, (2, 24), generator=torch.Generator().manual_seed(0))  # longer than EXAONE's tiny window
STEPS = ["load", "train", "save", "reload", "merge", "generate"]


@pytest.fixture(scope="module")
def table():
    """Collect what each family came through, and print it at the end (to be seen with `pytest -s`)."""
    done = {case: {} for case in CASES}
    yield done
    print("\n\n| family | precision | targets | " + " | ".join(STEPS) + " |\n|" + "---|" * (len(STEPS) + 3))
    for (family, precision, targets), cells in done.items():
        if cells:
            print(f"| {family} | {precision} | {targets or 'its own'} | " + " | ".join(
                cells.get(step, "failed") for step in STEPS
            ) + " |")


def test_every_preset_has_a_tested_family():
    assert {preset.family for preset in MODELS.values()} <= {*FAMILIES}


def logits(model):
    """Compute a model's logits of the test's tokens, in evaluation."""
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits.float()


def distance(first, second):
    """Return the largest difference of two tensors, relative to the larger of 1 and the largest value."""
    return ((first - second).abs().max() / second.abs().max().clamp(min=1)).item()


@pytest.mark.filterwarnings("ignore:LoRA does not reach")
@pytest.mark.parametrize("family, precision, targets", CASES)
def test_family(family, precision, targets, table, tmp_path):
    cells = table[family, precision, targets]
    checkpoint = locate_model(str(save_tiny_checkpoint(tmp_path / "model", family)))
    quantization = make_quantization(
        torch.float32, load_in_4bit=precision == "4-bit", load_in_8bit=precision == "8-bit"
    )
    with quiet_transformers():
        base = load_base_model(checkpoint.path, torch.float32, quantization)
        assert bool(getattr(base, "is_quantized", False)) is (precision != "float32")
        targets = choose_targets(targets, checkpoint)
        check_targets(base, targets)
        torch.manual_seed(0)
        model = add_lora(base, targets, lora_r=4, lora_alpha=8)
        cells["load"] = f"{type(base).__name__.removesuffix('ForCausalLM')}, {targets if isinstance(targets, str) else '+'.join(targets)}"

        losses, optimizer = [], torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
        logits(model)  # an evaluation before training must not stop gradients (bitsandbytes' repacking)
        for step in range(4):
            loss = model.train()(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
            loss.backward()
            if step == 0:
                second = {name: p.grad.norm().item() for name, p in model.named_parameters() if "lora_B" in name}
                assert len(second) >= 2 and min(second.values()) > 0, second
                assert isinstance(targets, str) or len(second) == 2 * len(targets)  # two blocks
                assert targets != "all-linear" or any("experts" in name for name in second)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.03
        assert all(p.grad is None for name, p in model.named_parameters() if "lora_" not in name)
        cells["train"] = f"loss {losses[0]:.2f} to {losses[-1]:.2f}"

        trained = logits(model)
        model.save_pretrained(tmp_path / "adapter")
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert len(tensors) == 2 * len(second) and all("lora_" in name for name in tensors)
        cells["save"] = f"{len(tensors)} tensors"

        again = PeftModel.from_pretrained(
            load_base_model(checkpoint.path, torch.float32, quantization), tmp_path / "adapter"
        )
        assert torch.equal(logits(again), trained)
        cells["reload"] = "same bits"

        floats = load_base_model(checkpoint.path, torch.float32, quantization)
        floats = PeftModel.from_pretrained(floats.dequantize() if quantization else floats, tmp_path / "adapter")
        unmerged = logits(floats)
        assert distance(unmerged, trained) < (0.01 if precision == "8-bit" else 1e-4)  # 8-bit layers round their inputs
        answer = floats.generate(
            input_ids=TOKENS[:1], attention_mask=torch.ones_like(TOKENS[:1]), max_new_tokens=6, do_sample=False
        )
        merged = floats.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        written = load_base_model(tmp_path / "merged", torch.float32)
        assert type(written) is type(base) and not any("lora" in name for name, _ in written.named_modules())
        assert max(distance(logits(merged), unmerged), distance(logits(written), unmerged)) < 1e-4
        cells["merge"] = f"{distance(logits(written), unmerged):.0e}"

        same = written.generate(
            input_ids=TOKENS[:1], attention_mask=torch.ones_like(TOKENS[:1]), max_new_tokens=6, do_sample=False
        )
        assert torch.equal(same, answer) and same.shape[1] > TOKENS.shape[1]
        cells["generate"] = f"{same.shape[1] - TOKENS.shape[1]} tokens, same"


@pytest.mark.parametrize(
    "family, shared", [("llama", False), ("llama", True), ("gpt_neox", False), ("gemma3_text", True)]
)
def test_new_tokens_and_dora_on_a_4_bit_base(family, shared, tmp_path):
    """New tokens are learned beside 4-bit DoRA, come back with the adapter, and merge; a head that is the embedding stays it."""
    size, new = len(tiny_tokenizer()), ["대한민국", "<요약>"]
    tiny_model(family, vocab_size=size, tie_word_embeddings=shared).save_pretrained(tmp_path)
    quantization = make_quantization(torch.float32, load_in_4bit=True, bnb_4bit_use_double_quant=True)
    tokenizer = tiny_tokenizer()
    with quiet_transformers():
        base = load_base_model(tmp_path, torch.float32, quantization)
        torch.manual_seed(0)
        ids = add_tokens(base, tokenizer, new)
        model = add_lora(
            base, "all-linear", lora_r=4, lora_alpha=8, checkpoint_activations=True, use_dora=True, new_token_ids=ids
        )
        tokens = tokenizer("서울은 대한민국의 수도입니다. <요약> 대한민국", return_tensors="pt").input_ids
        assert {*ids} <= {*tokens[0].tolist()}
        optimizer, losses = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02), []
        for _ in range(4):
            loss = model.train()(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            assert all(p.grad.norm() > 0 for name, p in model.named_parameters() if "trainable_tokens" in name)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1
        with torch.no_grad():
            trained = model.eval()(input_ids=tokens, use_cache=False).logits
            model.save_pretrained(tmp_path / "adapter")
            tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
            rows = [tensor.shape[0] for name, tensor in tensors.items() if "lora_" not in name]
            assert rows == [len(new)] * (1 if shared else 2)  # the new rows, not the whole tables
            fresh = load_base_model(tmp_path, torch.float32, quantization)
            grow_embeddings(fresh, tokenizer)
            again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
            assert torch.equal(again(input_ids=tokens, use_cache=False).logits, trained)
            floats = load_base_model(tmp_path, torch.float32, quantization).dequantize()
            grow_embeddings(floats, tokenizer)
            merged = PeftModel.from_pretrained(floats, tmp_path / "adapter").merge_and_unload()
            merged.save_pretrained(tmp_path / "merged")
            written = load_base_model(tmp_path / "merged", torch.float32)
            assert distance(written(input_ids=tokens).logits, trained) < 1e-4
            assert tied(written) is shared and written.config.vocab_size == size + len(new)


@pytest.fixture(scope="module")
def outcomes():
    """Read how each family is trained: tests/families.yaml, which `python tests/families.py` writes anew."""
    return yaml.safe_load(families.TABLE.read_text(encoding="utf-8"))


KINDS = ("exact tree", "exact padded", "refused: ", "not built: ")


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_is_exact_or_refused_by_name(family, outcomes):
    """Small models of all causal families: gradients as of examples alone, or one message."""
    found = families.walk(family)
    assert found.startswith(KINDS)
    if transformers.__version__ == outcomes["transformers"]:
        assert _kind(found) == _kind(outcomes["families"][family]), found


def _kind(outcome):
    return outcome.partition(":")[0].partition(";")[0]


def test_the_table_holds_every_family_and_nearly_all_can_be_built(outcomes):
    kinds = [_kind(known).removesuffix(" in float32") for known in outcomes["families"].values()]
    assert {*kinds} <= {kind.rstrip(": ") for kind in KINDS}
    composite = sum("the text side is" in known for known in outcomes["families"].values())
    assert kinds.count("exact tree") > 80 and kinds.count("exact padded") > 50
    assert kinds.count("not built") - composite <= 5
    if transformers.__version__ == outcomes["transformers"]:
        assert outcomes["families"].keys() == families.FAMILIES.keys()
