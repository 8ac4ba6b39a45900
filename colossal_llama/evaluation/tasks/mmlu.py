"""MMLU: 57 subjects in English, four choices (Hendrycks et al. 2021)."""

from collections.abc import Sequence
from pathlib import Path

from colossal_llama.evaluation.questions import FIRST_TOKEN, Subject
from colossal_llama.evaluation.tasks.directories import split_files
from colossal_llama.evaluation.tasks.four_choices import LETTERS, read_examples, read_questions
from colossal_llama.evaluation.tasks.task import SubjectFile, Task

_SUBJECTS = {
    "STEM": "abstract_algebra astronomy college_biology college_chemistry college_computer_science "
    "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
    "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
    "high_school_mathematics high_school_physics high_school_statistics machine_learning",
    "Humanities": "formal_logic high_school_european_history high_school_us_history high_school_world_history "
    "international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory "
    "professional_law world_religions",
    "Social Sciences": "econometrics high_school_geography high_school_government_and_politics "
    "high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality "
    "professional_psychology public_relations security_studies sociology us_foreign_policy",
    "Other": "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management "
    "marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology",
}
GROUPS = {subject: group for group, subjects in _SUBJECTS.items() for subject in subjects.split()}
"""The authors' groups, by subject."""
_ARCHIVE = "data"
"""Folder in the authors' archive."""


def find(directory: Path) -> list[SubjectFile]:
    """Lists the test files of a folder; of one named `data`, as in the authors' archive, MMLU's."""
    files = split_files(directory, "test")
    if directory.resolve().name.casefold() != _ARCHIVE:
        return files
    return [file for file in files if file.directory == directory and file.name.removesuffix("_test") in GROUPS]


def read(file: SubjectFile, shots: int) -> Subject:
    """Reads a subject and its examples.

    Raises:
        UserError: one of its files is missing, damaged or of another shape.
    """
    subject = file.name.removesuffix("_test")
    examples, notes = read_examples(file, subject, wording, shots)
    return Subject(
        task="mmlu",
        name=file.name,
        group=GROUPS.get(subject, ""),
        file=str(file.path),
        opening=f"The following are multiple choice questions (with answers) about {_title(subject)}.",
        examples=examples,
        questions=read_questions(file.path, wording),
        scored_by=FIRST_TOKEN,
        notes=notes if subject in GROUPS else (f"{subject} is not in MMLU's list of subjects: no group", *notes),
    )


def wording(question: str, options: Sequence[str]) -> str:
    """Words a question."""
    choices = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=True))
    return f"Question: {question}\n{choices}Answer: "


def _title(subject: str) -> str:
    """`high_school_us_history` is `High School US History`."""
    return " ".join("US" if word == "us" else word.title() for word in subject.split("_"))


TASK = Task(
    name="mmlu",
    title="MMLU",
    folders=("mmlu", "hendryckstest", "mmludata", _ARCHIVE),
    shots=5,
    layout="test/SUBJECT_test.csv and dev/SUBJECT_dev.csv, also below data/",
    find=find,
    read=read,
)
