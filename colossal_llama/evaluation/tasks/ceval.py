"""C-Eval: 52 subjects in Chinese, four choices (Huang et al. 2023; CC BY-NC-SA 4.0).

The authors publish the answers of dev/ and val/, and keep those of test/: val/ is scored.
"""

from pathlib import Path

from colossal_llama.evaluation.questions import FIRST_TOKEN, Subject
from colossal_llama.evaluation.tasks.cmmlu import wording
from colossal_llama.evaluation.tasks.directories import split_files
from colossal_llama.evaluation.tasks.four_choices import read_examples, read_questions
from colossal_llama.evaluation.tasks.task import SubjectFile, Task

_SUBJECTS = {
    "STEM": {
        "advanced_mathematics": "高等数学",
        "college_chemistry": "大学化学",
        "college_physics": "大学物理",
        "college_programming": "大学编程",
        "computer_architecture": "计算机组成",
        "computer_network": "计算机网络",
        "discrete_mathematics": "离散数学",
        "electrical_engineer": "注册电气工程师",
        "high_school_biology": "高中生物",
        "high_school_chemistry": "高中化学",
        "high_school_mathematics": "高中数学",
        "high_school_physics": "高中物理",
        "metrology_engineer": "注册计量师",
        "middle_school_biology": "初中生物",
        "middle_school_chemistry": "初中化学",
        "middle_school_mathematics": "初中数学",
        "middle_school_physics": "初中物理",
        "operating_system": "操作系统",
        "probability_and_statistics": "概率统计",
        "veterinary_medicine": "兽医学",
    },
    "Social Science": {
        "business_administration": "工商管理",
        "college_economics": "大学经济学",
        "education_science": "教育学",
        "high_school_geography": "高中地理",
        "high_school_politics": "高中政治",
        "mao_zedong_thought": "毛泽东思想和中国特色社会主义理论体系概论",
        "marxism": "马克思主义基本原理",
        "middle_school_geography": "初中地理",
        "middle_school_politics": "初中政治",
        "teacher_qualification": "教师资格",
    },
    "Humanities": {
        "art_studies": "艺术学",
        "chinese_language_and_literature": "中国语言文学",
        "high_school_chinese": "高中语文",
        "high_school_history": "高中历史",
        "ideological_and_moral_cultivation": "思想道德修养与法律基础",
        "law": "法学",
        "legal_professional": "法律职业资格",
        "logic": "逻辑学",
        "middle_school_history": "初中历史",
        "modern_chinese_history": "近代史纲要",
        "professional_tour_guide": "导游资格",
    },
    "Other": {
        "accountant": "注册会计师",
        "basic_medicine": "基础医学",
        "civil_servant": "公务员",
        "clinical_medicine": "临床医学",
        "environmental_impact_assessment_engineer": "环境影响评价工程师",
        "fire_engineer": "注册消防工程师",
        "physician": "医师资格",
        "plant_protection": "植物保护",
        "sports_science": "体育学",
        "tax_accountant": "税务师",
        "urban_and_rural_planner": "注册城乡规划师",
    },
}
"""The authors' Chinese names, by group and subject."""
NAMES = {subject: name for names in _SUBJECTS.values() for subject, name in names.items()}
GROUPS = {subject: group for group, names in _SUBJECTS.items() for subject in names}


def find(directory: Path) -> list[SubjectFile]:
    """Lists the val files of a folder; the test files where there is no val folder."""
    return split_files(directory, "val") or split_files(directory, "test")


def read(file: SubjectFile, shots: int) -> Subject:
    """Reads a subject and its examples.

    Raises:
        UserError: one of its files is missing, damaged or of another shape, or has no answers.
    """
    subject = file.name.removesuffix("_val").removesuffix("_test")
    name = NAMES.get(subject, subject.replace("_", " "))
    unknown = f"{subject} is not in C-Eval's list of subjects: the prompts name it {name!r}, no group"
    unanswered = "C-Eval's authors keep the answers of the test split: use val (the folder val next to dev)"
    examples, notes = read_examples(file, subject, wording, shots)
    return Subject(
        task="ceval",
        name=file.name,
        group=GROUPS.get(subject, ""),
        file=str(file.path),
        opening=f"以下是中国关于{name}考试的单项选择题，请选出其中的正确答案。",
        examples=examples,
        questions=read_questions(file.path, wording, unanswered),
        scored_by=FIRST_TOKEN,
        notes=notes if subject in NAMES else (unknown, *notes),
    )


TASK = Task(
    name="ceval",
    title="C-Eval",
    folders=("ceval", "cevalexam", "formalceval"),
    shots=5,
    layout="val/SUBJECT_val.csv and dev/SUBJECT_dev.csv",
    find=find,
    read=read,
)
