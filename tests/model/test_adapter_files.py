"""A damaged configuration of an adapter is named."""

import pytest

from colossal_llama.model.weights.adapter_files import adapter_base_name, load_adapter_config
from colossal_llama.utils.errors import UserError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"r": 4, "lora_alpha": 8}', "lora_dropout, target_modules is missing"),
    ],
)
def test_a_damaged_configuration_of_an_adapter_is_named(content, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_adapter_config(tmp_path)
    with pytest.raises(UserError, match=r"adapter_config\.json (is not|cannot be used)"):
        adapter_base_name(tmp_path)
