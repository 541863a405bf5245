"""What a stand-in is taught to say: findings, the phrases for them, and the care that they call for."""

from __future__ import annotations

from dataclasses import dataclass

from medlib.data.synthetic import grammar
from medlib.data.synthetic.lexicon import FINDINGS, LEXICON, SPLITS, Care, Finding, Lexicon

MODALITY_NAMES = {
    "xray": "Chest x-ray",
    "histopathology": "Lung histology",
    "mri": "Brain MRI",
    "ultrasound": "Breast ultrasound",
}


def caption(finding: Finding) -> str:
    """What the stand-in should say of an image."""
    return f"{modality_name(finding.modality)}: {finding.label}"


def modality_name(modality: str) -> str:
    """A modality as captions and cards name it."""
    return MODALITY_NAMES.get(modality, modality)


@dataclass(frozen=True)
class Words:
    """Findings with the words of every split for them; by default those of the generator.

    Parameters
    ----------
    findings : tuple of Finding
        Labels of images are places in it.
    lexicon : Lexicon
        Has their care and complaints.
    plain : bool
        Also the phrases for real images.
    splits : tuple of str
        Those whose phrases are taught; all by default, as MedGemma has met the words of medicine before.
    """

    findings: tuple[Finding, ...] = FINDINGS
    lexicon: Lexicon = LEXICON
    plain: bool = False
    splits: tuple[str, ...] = SPLITS

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the findings, in their order."""
        return tuple(dict.fromkeys(f.modality for f in self.findings))

    def findings_of(self, modality: str) -> list[Finding]:
        return [f for f in self.findings if f.modality == modality]

    def care_of(self, modality: str) -> list[Care]:
        """Care that some finding of the modality calls for, from least to most invasive."""
        called_for = {f.care for f in self.findings_of(modality)}
        return [care for care in self.lexicon.modalities[modality].care if care.name in called_for]

    def phrases(self, finding: Finding) -> list[str]:
        """Templates for a finding."""
        tables = [finding.phrases, (finding.plain_phrases or {}) if self.plain else {}]
        return [phrase for table in tables for name in self.splits for phrase in table.get(name, ())]

    def treatments(self, care: Care) -> list[str]:
        """Phrases for a kind of care."""
        return [phrase for name in self.splits for phrase in care.treatments[name]]

    def sentences(self) -> list[str]:
        """Every phrase for findings and treatments, slots filled."""
        if self.splits == SPLITS:
            return grammar.phrases(lexicon=self.lexicon if self.plain else None)
        return [p for name in self.splits for p in grammar.phrases(name, self.lexicon if self.plain else None)]


#: The words for images that the project draws.
DRAWN = Words()

#: The same without those of the test split, so that the held-out words are new to a model.
WITHOUT_TEST = Words(splits=tuple(name for name in SPLITS if name != "test"))
