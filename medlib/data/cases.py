"""What one scenario is, and how a bad row is refused.

A scenario is one line of a JSONL file: an image, a patient, a clinical finding, a prescribed
treatment and the verdict that an auditor should give. Every error names file, row and field.
The project's own files state every field; `medlib.data.own` reads data sets that state fewer.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Iterable, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medlib.config import DataError, jsonl

#: Modality of a case that states none.
UNSPECIFIED = "unspecified"
#: What stands in place of a withheld finding, treatment or complaint.
WITHHELD = "withheld"
ErrorType = Literal[
    "none", "overtreatment", "unnecessary_procedure", "undertreatment", "contradiction", "contraindication"
]
Severity = Literal["none", "moderate", "high", "critical"]
ERROR_TYPES = get_args(ErrorType)


def _no_truth_value(value: object) -> object:
    """The value; ValueError for true and false, which Python would take for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"a number is needed, not {str(value).lower()}")
    return value


class Patient(BaseModel):
    """The patient facts shown to the auditor; no name, no date, no identifier. None: not stated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    age: int | None = Field(None, ge=0, le=120, description="years")
    sex: Literal["female", "male", "other"] | None = None
    complaint: str | None = Field(None, min_length=1, pattern=r"\S")

    @field_validator("age", mode="before")
    @classmethod
    def _age_is_a_number(cls, value: object) -> object:
        return _no_truth_value(value)


class Case(BaseModel):
    """One clinical decision, as an auditor sees it.

    Only id, image, finding and treatment are needed; what a data set does not state is None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, pattern=r"\S")
    modality: str = Field(UNSPECIFIED, pattern=r"\S", description="any name; the generator draws four")
    image: str = Field(min_length=1, description="file name inside the images folder")
    patient: Patient = Patient()
    finding: str = Field(min_length=1, pattern=r"\S")
    treatment: str = Field(min_length=1, pattern=r"\S")

    @field_validator("image")
    @classmethod
    def _image_stays_inside(cls, name: str) -> str:
        written = PurePosixPath(name.replace("\\", "/"))
        if written.is_absolute() or ".." in written.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise ValueError(f"{name[:80]!r} leads outside the images folder")
        return name


class LabelledCase(Case):
    """A case with the verdict that an auditor should give; error type, severity and cost may be None.

    ``factors`` says how a generated case was made (verdict source, phrase templates, twin) and holds the
    further columns of a data set, such as ``group``; it is for analysis only and never shown to a model.
    """

    verdict: Literal["CORRECT", "ERROR"]
    error_type: ErrorType | None = None
    severity: Severity | None = None
    cost_impact: int | None = Field(None, ge=0, description="US dollars lost if the error goes through")
    factors: dict[str, str | int] = Field(default_factory=dict)

    @field_validator("cost_impact", mode="before")
    @classmethod
    def _cost_is_a_number(cls, value: object) -> object:
        return _no_truth_value(value)

    @model_validator(mode="after")
    def _verdict_agrees_with_error(self) -> LabelledCase:
        for name, value in (("error_type", self.error_type), ("severity", self.severity)):
            if value is not None and (self.verdict == "CORRECT") != (value == "none"):
                raise ValueError(f"{name}: {value!r} contradicts verdict {self.verdict}")
        return self


def read_scenarios(path: str | Path) -> list[LabelledCase]:
    """Read a JSONL file of scenarios in which every row states every field, if only as null.

    Raises
    ------
    DataError
        For a missing file, a line that is not JSON, a missing or unknown field, a bad value, or
        an id used twice; the message names file, row (1-based) and field, and lists every bad row.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; `python -m medlib data` builds the data sets")
    scenarios, problems = [], []
    first_row: dict[str, int] = {}
    for row, line in jsonl.lines(path):
        try:
            scenario = parse_scenario(path, row, jsonl.parse(path, row, line), complete=True)
        except DataError as error:
            problems.append(str(error))
        else:
            if scenario.id in first_row:
                problems.append(
                    f"{path}, row {row}, field 'id': {scenario.id!r} was used in row {first_row[scenario.id]}"
                )
            first_row.setdefault(scenario.id, row)
            scenarios.append(scenario)
    if problems:
        raise DataError("\n".join(problems))
    return scenarios


def parse_scenario(path: str | Path, row: int, content: dict, complete: bool = False) -> LabelledCase:
    """The scenario in one row of a file; DataError with a line for each bad field.

    ``complete`` also refuses a row that omits an optional field, so that no typing error goes unseen.
    """
    problems = {}
    try:
        scenario = LabelledCase.model_validate(content)
    except ValidationError as error:
        problems = {
            ".".join(map(str, item["loc"])) or "verdict/error_type/severity": item["msg"]
            for item in error.errors()
        }
    if complete:
        problems |= {name: "Field required" for name in _omitted(content)}
    if problems:
        raise DataError("\n".join(f"{path}, row {row}, field '{name}': {msg}" for name, msg in problems.items()))
    return scenario


def _omitted(content: dict) -> list[str]:
    """Names of the fields that a row does not mention."""
    patient = content.get("patient")
    inside = [f"patient.{name}" for name in Patient.model_fields if name not in patient] if patient else []
    return [name for name in LabelledCase.model_fields if name not in content and name != "factors"] + inside


def write_scenarios(path: str | Path, scenarios: Iterable[LabelledCase]) -> Path:
    """Write scenarios as JSONL, one line each, keys in schema order (so the bytes are stable)."""
    return jsonl.write(path, (s.model_dump() for s in scenarios), ensure_ascii=False)


def scenario_hash(scenarios: Iterable[LabelledCase]) -> str:
    """SHA-256 over the rows as written, so equal data gives an equal name anywhere."""
    digest = hashlib.sha256()
    for scenario in scenarios:
        digest.update(json.dumps(scenario.model_dump(), ensure_ascii=False).encode())
    return digest.hexdigest()
