"""An update of a library that takes a hook away is told by the hook's name."""

import inspect
import pkgutil

import pytest
import torch
from transformers import TrainingArguments

from medlib.training import hooks


@pytest.mark.parametrize("hook", hooks.HOOKS, ids=lambda hook: hook.name)
def test_the_libraries_still_have(hook):
    try:
        found = pkgutil.resolve_name(hook.name)
    except (AttributeError, ImportError) as error:
        pytest.fail(f"{hook.name} is gone ({error}); needed because {hook.why}")
    if hook.parameters:
        missing = set(hook.parameters) - set(inspect.signature(found).parameters)
        assert not missing, f"{hook.name} lost {', '.join(sorted(missing))}; needed because {hook.why}"


def test_every_hook_is_listed_once():
    names = [hook.name for hook in hooks.HOOKS]
    assert len(set(names)) == len(names) and all(hook.why for hook in hooks.HOOKS)


def test_one_card_is_used_of_several(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert arguments.n_gpu == 0
    arguments._n_gpu = 4
    assert arguments.n_gpu == 4  # transformers still reads it from there
    hooks.one_card(arguments)
    assert arguments.n_gpu == 1


def test_a_wrapped_forward_comes_back_after_an_interruption():
    plain, patched = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    patched.forward = own = lambda x: x
    with pytest.raises(KeyboardInterrupt), hooks.same_forward(plain, patched):
        plain.forward = patched.forward = None
        raise KeyboardInterrupt
    assert "forward" not in plain.__dict__ and patched.forward is own
