"""Titles in the files of figures: by them earlier ones are recognised, which may be replaced."""

DATA_TITLE = "plot_data of colossal-llama"
DATA_JSON_BEGINNING = b'{\n  "plot_data_version": '
"""Beginning of the numbers' file."""
PLAN_TITLE = "plan of the mixture by colossal_llama"
