"""Adapters beside PEFT, on the transformers model of the same weights; `make test-hf`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rocmforge_jax as rf
from rocmforge_jax.adapters.wrap import adapters
from tests.export import fresh

# Libraries warn of what they are about to change.
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("default")]
IDS = np.random.default_rng(5).integers(0, 91, (2, 53))
UNTIED = "llama, untied, with biases"


def ours(model):
    return np.float64(model(jnp.asarray(IDS))[0])


def shaken(model):
    """Draws the second matrices, which are zeros in a new adapter."""
    for i, layer in enumerate(adapters(model).values()):
        layer.lora_b.set_value(0.2 * jax.random.normal(jax.random.key(i), layer.lora_b.shape))
    return model


@pytest.mark.parametrize("name", fresh.FAMILIES)
def test_peft_loads_what_was_saved(name, peft, loaded, logits_of, tmp_path, distance):
    """Adapters of two ranks and scales, one of them on some layers alone."""
    base = fresh.decoder(name)
    model = rf.lora(base, 3, alpha=7)
    model = shaken(rf.lora(model, 5, ["blk.1.ffn_*", "blk.3.ffn_down"], alpha=2))
    rf.save(base, tmp_path / "base")
    rf.save_lora(model, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "adapter")
    expected = ours(model)
    assert distance(logits_of(theirs, IDS), expected) < 1e-5
    assert distance(ours(base), expected) > 1e-2


def trained(peft, base, folder, **options):
    """Saves an adapter of PEFT's own; returns the model with it."""
    import torch

    torch.manual_seed(3)
    options = dict(r=4, lora_alpha=6, task_type="CAUSAL_LM") | options
    model = peft.get_peft_model(base, peft.LoraConfig(**options)).eval()
    for name, matrix in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(matrix, std=0.2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, dict(target_modules="all-linear")) for name in fresh.FAMILIES),
        ("llama", dict(target_modules=["q_proj", "k_proj"], use_rslora=True)),
        ("qwen2", dict(target_modules=["v_proj"], layers_to_transform=[1, 2])),
        (UNTIED, dict(target_modules=["o_proj", "lm_head"], lora_dropout=0.3)),
        (
            "qwen3",
            dict(
                target_modules=["q_proj", "up_proj"],
                rank_pattern={"up_proj": 2, "layers.2.self_attn.q_proj": 7},
                alpha_pattern={"up_proj": 5, "model.layers.2.self_attn.q_proj": 3},
            ),
        ),
    ],
)
def test_what_peft_saved_loads(name, options, peft, loaded, logits_of, tmp_path, distance):
    base = fresh.decoder(name)
    rf.save(base, tmp_path / "base")
    theirs = trained(peft, loaded(tmp_path / "base"), tmp_path / "adapter", **options)
    model = rf.load_lora(base, tmp_path / "adapter")
    found = ours(model)
    assert distance(logits_of(theirs, IDS), found) < 1e-5
    assert distance(ours(base), found) > 1e-2
    merged = ours(rf.merge_lora(model))
    assert distance(logits_of(theirs.merge_and_unload(), IDS), merged) < 1e-5


def test_the_demo_packed(peft, loaded, logits_of, tmp_path, distance):
    """A packed base of ours and a dense one of theirs, with the same adapter."""
    lm = rf.load("demo", progress=False, activations="float")
    model = shaken(rf.lora(lm.model, 4, True))
    rf.save(lm, tmp_path / "base")
    rf.save_lora(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "adapter")
    assert distance(logits_of(theirs, IDS), ours(model)) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(use_dora=True), "use_dora"),
        (dict(target_modules=["embed_tokens"]), "embed_tokens"),
        (dict(bias="lora_only"), "bias"),
        (dict(modules_to_save=["norm"]), "norm"),
    ],
)
def test_what_is_not_supported_is_refused(options, message, peft, loaded, tmp_path):
    base = fresh.decoder(UNTIED)
    rf.save(base, tmp_path / "base")
    options = dict(target_modules=["q_proj", "v_proj"]) | options
    trained(peft, loaded(tmp_path / "base"), tmp_path / "adapter", **options)
    with pytest.raises(ValueError, match=message):
        rf.load_lora(base, tmp_path / "adapter")
