"""What a model reads of a case."""

import pytest

from medlib.data.cases import Case, Patient
from medlib.models.prompts import clinical_text


@pytest.mark.parametrize(
    ("patient", "line"),
    [
        (Patient(age=40, sex="female", complaint="cough"), "Patient: 40 years, female. cough.\n"),
        (Patient(age=0, sex="other"), "Patient: 0 years, other.\n"),
        (Patient(sex="male", complaint="cough"), "Patient: male. cough.\n"),
        (Patient(complaint="cough"), "Patient: cough.\n"),
        (Patient(), ""),
    ],
)
def test_what_is_not_stated_is_left_out(patient, line):
    case = Case(id="a", image="a.png", patient=patient, finding="mass", treatment="biopsy")
    assert clinical_text(case) == f"{line}Clinical finding: mass.\nPrescribed treatment: biopsy."
