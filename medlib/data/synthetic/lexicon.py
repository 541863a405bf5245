"""The words of the scenario grammar: findings, treatments, complaints.

Every phrase belongs to one split, so a test scenario is worded in a way that training never saw.
A treatment phrase is listed only if some finding calls for it: a phrase that is always wrong would
be a keyword that gives the verdict away.
"""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "val", "test")

#: Care in one modality, from least to most invasive; the order tells over- from undertreatment.
CARE_ORDER = {
    "xray": ("observation", "antibiotics", "antivirals"),
    "histopathology": ("observation", "oncology"),
    "mri": ("observation", "resection", "chemoradiation"),
    "ultrasound": ("observation", "biopsy"),
}


@dataclass(frozen=True)
class Finding:
    """A finding that the generator can draw, the care it calls for and the ways to word it."""

    modality: str
    name: str  # as `medlib.data.synthetic.draw` knows it
    label: str  # canonical words, used in captions
    care: str
    benign: bool
    phrases: dict[str, tuple[str, ...]]  # split -> templates


def _split(phrases: str, counts: tuple[int, int, int]) -> dict[str, tuple[str, ...]]:
    lines = tuple(line.strip() for line in phrases.strip().splitlines())
    if len(lines) != sum(counts):
        raise AssertionError(f"{len(lines)} phrases for {counts}: {lines[0]!r} ...")
    a, b = counts[0], counts[0] + counts[1]
    return {"train": lines[:a], "val": lines[a:b], "test": lines[b:]}


def _finding(modality: str, name: str, label: str, care: str, phrases: str) -> Finding:
    benign = care == "observation"
    return Finding(modality, name, label, care, benign, _split(phrases, (6, 2, 4)))


FINDINGS: tuple[Finding, ...] = (
    _finding(
        "xray",
        "normal",
        "clear lungs",
        "observation",
        """
        Clear lungs without infiltrate or effusion
        Normal chest radiograph, costophrenic angles sharp
        No focal opacity, heart size normal
        Lungs well aerated on both sides
        Unremarkable frontal chest film
        No acute cardiopulmonary abnormality
        Both lungs clear, cardiac silhouette normal
        No airspace disease seen
        Normal lung fields without consolidation
        Lungs clear, no effusion
        Unremarkable heart and lungs, no opacity
        Well aerated lungs, no acute abnormality
    """,
    ),
    _finding(
        "xray",
        "consolidation",
        "lobar consolidation",
        "antibiotics",
        """
        {degree} lobar consolidation with air bronchograms
        Focal airspace opacity, in keeping with bacterial pneumonia
        Dense consolidation confined to one lobe
        Single lobar opacity suggesting bacterial pneumonia
        {degree} focal consolidation, probably bacterial
        Lobar pneumonia with air bronchograms
        Dense focal airspace opacity in one lobe
        {degree} consolidation of a single lobe, bacterial pattern
        Lobar airspace consolidation, bacterial pneumonia likely
        Dense lobar opacity with air bronchograms
        {degree} bacterial pneumonia confined to one lobe
        Focal dense consolidation of a single lobe
    """,
    ),
    _finding(
        "xray",
        "ground_glass",
        "ground-glass opacities",
        "antivirals",
        """
        {degree} bilateral ground-glass opacities
        Peripheral hazy opacities in both lungs, typical of COVID-19
        Patchy ground-glass change in both lower zones
        Bilateral hazy ground-glass pattern, viral pneumonia likely
        {degree} peripheral ground-glass change, COVID-19 pattern
        Hazy bilateral opacities with vessels still visible
        Ground-glass opacities in both lower zones
        {degree} hazy peripheral change, typical of COVID-19
        Bilateral peripheral ground-glass opacities, COVID-19 likely
        {degree} hazy opacities in both lower zones
        Patchy hazy ground-glass pattern in both lungs
        Viral pneumonia with peripheral ground-glass change
    """,
    ),
    _finding(
        "xray",
        "diffuse_infiltrates",
        "diffuse infiltrates",
        "antivirals",
        """
        {degree} diffuse bilateral infiltrates
        Widespread reticulonodular infiltrates in all zones
        Diffuse interstitial infiltrates suggesting viral pneumonia
        Coarse bilateral infiltrates throughout both lungs
        {degree} widespread interstitial change, viral pattern
        Diffuse nodular infiltrates in both lungs
        Widespread coarse infiltrates, viral pneumonia likely
        {degree} reticulonodular change in all zones
        Diffuse coarse infiltrates throughout both lungs
        {degree} widespread infiltrates, viral pattern
        Bilateral interstitial infiltrates in all zones
        Diffuse reticulonodular infiltrates suggesting viral pneumonia
    """,
    ),
    _finding(
        "histopathology",
        "normal",
        "normal lung tissue",
        "observation",
        """
        Normal alveolar architecture, no atypia
        Benign lung parenchyma with thin septa
        No malignant cells in the section
        Unremarkable alveolar tissue, uniform small nuclei
        Lung tissue without dysplasia
        Regular alveoli, benign pneumocytes
        Benign alveolar tissue, no dysplasia
        Thin septa and open airspaces, no malignant cells
        Normal lung parenchyma without atypia
        Unremarkable benign alveoli
        Open airspaces with thin septa, uniform small nuclei
        No dysplasia, no malignant cells, regular alveoli
    """,
    ),
    _finding(
        "histopathology",
        "adenocarcinoma",
        "adenocarcinoma",
        "oncology",
        """
        Invasive adenocarcinoma forming atypical glands
        Malignant glands with {degree} nuclear atypia
        Gland-forming carcinoma in desmoplastic stroma
        Acinar adenocarcinoma of the lung
        Adenocarcinoma, back-to-back glands
        Infiltrating malignant glands, crowded enlarged nuclei
        Acinar carcinoma with {degree} atypia
        Atypical crowded glands, invasive adenocarcinoma
        Invasive gland-forming adenocarcinoma
        Infiltrating acinar carcinoma in desmoplastic stroma
        Adenocarcinoma with crowded atypical glands
        Malignant back-to-back glands, {degree} nuclear atypia
    """,
    ),
    _finding(
        "histopathology",
        "poorly_differentiated",
        "poorly differentiated carcinoma",
        "oncology",
        """
        Poorly differentiated carcinoma with frequent mitoses
        Solid sheets of pleomorphic tumour cells
        High-grade carcinoma, no gland formation
        Sheets of large hyperchromatic malignant cells
        Solid carcinoma with {degree} pleomorphism
        High mitotic index in a solid malignant growth
        Solid high-grade carcinoma, frequent mitoses
        Pleomorphic malignant cells in sheets
        Poorly differentiated solid carcinoma, high mitotic index
        Sheets of pleomorphic hyperchromatic tumour cells
        High-grade solid malignant growth with {degree} pleomorphism
        Large malignant cells, frequent mitoses, no gland formation
    """,
    ),
    _finding(
        "mri",
        "normal",
        "normal brain",
        "observation",
        """
        Normal brain, no abnormal enhancement
        No intracranial mass or midline shift
        Unremarkable contrast MRI of the brain
        Ventricles and sulci normal, no lesion
        Grey-white differentiation preserved, no mass
        No oedema, no enhancing lesion
        Normal ventricles, no enhancing mass
        Unremarkable brain without lesion
        No mass, ventricles normal
        Normal brain without midline shift or oedema
        No abnormal enhancement, sulci preserved
        Unremarkable brain parenchyma, no intracranial mass
    """,
    ),
    _finding(
        "mri",
        "ring_enhancing_mass",
        "ring-enhancing glioblastoma",
        "chemoradiation",
        """
        Ring-enhancing mass with necrotic core, glioblastoma likely
        {degree} irregular rim enhancement around central necrosis
        High-grade glioma with surrounding oedema
        Necrotic enhancing tumour, in keeping with glioblastoma
        Irregular ring-enhancing glioma with mass effect
        Glioblastoma with {degree} perilesional oedema
        Irregular necrotic mass, high-grade glioma
        Rim-enhancing tumour with central necrosis
        Glioblastoma, ring-enhancing with necrotic core
        High-grade glioma with irregular rim enhancement
        {degree} ring-enhancing necrotic tumour with oedema
        Irregular glioma around central necrosis
    """,
    ),
    _finding(
        "mri",
        "well_circumscribed_mass",
        "well-circumscribed meningioma",
        "resection",
        """
        Well-circumscribed dural-based mass, meningioma likely
        Homogeneously enhancing extra-axial mass with dural tail
        Smooth solid mass at the convexity, typical of meningioma
        Extra-axial tumour with {degree} homogeneous enhancement
        Meningioma of the convexity with dural tail
        Well-defined solid dural mass
        Solid extra-axial mass, meningioma likely
        Well-circumscribed convexity mass with {degree} enhancement
        Dural-based meningioma, homogeneous enhancement
        Smooth well-defined extra-axial mass
        Solid mass with dural tail, typical of meningioma
        Well-circumscribed solid convexity meningioma
    """,
    ),
    _finding(
        "ultrasound",
        "normal",
        "normal breast tissue",
        "observation",
        """
        Normal fibroglandular tissue, BI-RADS 1
        No mass, no suspicious finding
        Unremarkable breast ultrasound
        Homogeneous breast tissue without lesion
        Layered fat and glandular tissue, nothing suspicious
        Normal breast parenchyma, BI-RADS 1
        Homogeneous fibroglandular tissue, no mass
        Unremarkable glandular tissue without lesion
        Normal breast tissue without mass
        No lesion, BI-RADS 1
        Unremarkable layered fibroglandular tissue
        Homogeneous breast parenchyma, nothing suspicious
    """,
    ),
    _finding(
        "ultrasound",
        "simple_cyst",
        "simple cyst",
        "observation",
        """
        Simple anechoic cyst with posterior enhancement
        Thin-walled cyst, BI-RADS 2
        Smooth round anechoic lesion, benign cyst
        Benign simple cyst of the breast
        Oval cyst with smooth wall, BI-RADS 2
        Anechoic thin-walled cyst, benign
        Round simple cyst with smooth wall
        Benign anechoic cyst, posterior enhancement
        Thin-walled simple cyst with posterior enhancement
        Smooth oval anechoic cyst, BI-RADS 2
        Benign round cyst, thin wall
        Simple cyst, anechoic and smooth
    """,
    ),
    _finding(
        "ultrasound",
        "spiculated_mass",
        "spiculated mass",
        "biopsy",
        """
        Spiculated hypoechoic mass with shadowing, BI-RADS 5
        Irregular mass, taller than wide
        Suspicious spiculated lesion with posterior shadowing
        Hypoechoic mass with angular margins, BI-RADS 4C
        Irregular shadowing mass, probably malignant
        {degree} spiculation around a hypoechoic mass
        Malignant-looking irregular mass, BI-RADS 5
        Suspicious hypoechoic mass, angular margins
        Irregular spiculated mass, BI-RADS 4C
        Spiculated mass, taller than wide, with shadowing
        Suspicious irregular hypoechoic mass with posterior shadowing
        Probably malignant spiculated lesion with angular margins
    """,
    ),
)

DEGREES = ("Mild", "Moderate", "Marked")


def _treatments(phrases: str) -> dict[str, tuple[str, ...]]:
    return _split(phrases, (5, 2, 3))


#: (modality, care) -> split -> phrases
TREATMENTS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("xray", "observation"): _treatments("""
        Reassurance and routine follow-up
        No treatment, return if symptoms persist
        Watchful waiting without medication
        Discharge home with safety-net advice
        Observation only
        No medication, routine follow-up
        Reassurance and discharge home
        Watchful waiting, return if symptoms persist
        Observation only, no medication
        Reassurance with safety-net advice, no treatment
    """),
    ("xray", "antibiotics"): _treatments("""
        Intravenous ceftriaxone and azithromycin
        Oral amoxicillin-clavulanate for 7 days
        Broad-spectrum antibiotics with admission
        Empirical antibiotic therapy for pneumonia
        Levofloxacin for 5 days
        Antibiotic therapy with oral amoxicillin-clavulanate
        Admission for intravenous ceftriaxone
        Broad-spectrum antibiotic therapy for 7 days
        Intravenous levofloxacin with admission
        Empirical azithromycin and oral amoxicillin-clavulanate
    """),
    ("xray", "antivirals"): _treatments("""
        Supplemental oxygen and remdesivir
        Antiviral therapy with dexamethasone and oxygen
        Nirmatrelvir-ritonavir with isolation
        High-flow oxygen, antivirals and prone positioning
        Antivirals with ventilatory support
        Remdesivir and high-flow oxygen
        Isolation, antiviral therapy and supplemental oxygen
        Remdesivir with dexamethasone and supplemental oxygen
        Antiviral therapy with ventilatory support and oxygen
        Nirmatrelvir-ritonavir, high-flow oxygen and isolation
    """),
    ("histopathology", "observation"): _treatments("""
        No oncological treatment, routine follow-up
        Surveillance CT in 12 months
        Reassurance, pathology is benign
        Watchful waiting with clinic review
        Discharge from the lung nodule clinic
        Routine follow-up with surveillance CT
        Reassurance and discharge from clinic
        Watchful waiting, surveillance CT in 12 months
        Clinic review only, no oncological treatment
        Reassurance with routine clinic review
    """),
    ("histopathology", "oncology"): _treatments("""
        Lobectomy with lymph node dissection
        Cisplatin-based chemotherapy for 4 cycles
        Surgical resection and adjuvant chemotherapy
        Chemoradiotherapy with immunotherapy
        Targeted therapy after resection
        Lobectomy and adjuvant chemotherapy
        Chemotherapy with immunotherapy
        Surgical resection with lymph node dissection
        Cisplatin-based chemoradiotherapy
        Lobectomy followed by targeted therapy and immunotherapy
    """),
    ("mri", "observation"): _treatments("""
        Headache diary and follow-up
        Reassurance, no intervention
        Conservative management with simple analgesia
        Watchful waiting without surgery
        No neurosurgical referral needed
        Simple analgesia and headache diary
        No intervention, clinical follow-up
        Conservative management, no neurosurgical referral
        Reassurance with headache diary
        Watchful waiting and simple analgesia
    """),
    ("mri", "resection"): _treatments("""
        Complete surgical excision alone
        Craniotomy and resection without adjuvant therapy
        Simpson grade I resection
        Surgical resection of mass and dural attachment
        Excision alone with yearly imaging
        Craniotomy for complete excision alone
        Resection of mass without adjuvant therapy
        Simpson grade I excision with yearly imaging
        Craniotomy and resection of dural attachment alone
        Complete resection without adjuvant therapy
    """),
    ("mri", "chemoradiation"): _treatments("""
        Maximal safe resection then temozolomide and radiotherapy
        Chemoradiation following tumour debulking
        Resection with concurrent chemoradiation
        Radiotherapy plus temozolomide after debulking
        Debulking, fractionated radiotherapy and chemotherapy
        Maximal debulking with concurrent temozolomide
        Fractionated radiotherapy and temozolomide after resection
        Tumour debulking then fractionated radiotherapy and temozolomide
        Maximal safe resection with concurrent chemoradiation
        Resection followed by radiotherapy plus chemotherapy
    """),
    ("ultrasound", "observation"): _treatments("""
        Routine screening in 12 months
        Reassurance, no biopsy
        Watchful waiting with clinical review
        No intervention, return if changes occur
        Annual breast check only
        Reassurance and annual screening
        No biopsy, routine clinical review
        Routine annual screening only
        Watchful waiting, no biopsy
        Reassurance with clinical review in 12 months
    """),
    ("ultrasound", "biopsy"): _treatments("""
        Ultrasound-guided core needle biopsy
        Core biopsy then lumpectomy if malignant
        Urgent referral for tissue diagnosis
        Lumpectomy with sentinel node biopsy
        Mastectomy and axillary dissection
        Urgent ultrasound-guided biopsy
        Tissue diagnosis by core needle biopsy
        Urgent core biopsy with referral to surgery
        Lumpectomy and axillary dissection
        Ultrasound-guided tissue diagnosis, then surgery
    """),
}

#: Complaints are drawn apart from the finding, so they say nothing of the verdict.
COMPLAINTS = {
    "xray": (
        "Cough for 4 days",
        "Fever and chills",
        "Shortness of breath",
        "Pre-employment check",
        "Chest discomfort",
        "Fatigue and cough",
        "Routine follow-up",
        "Wheeze at night",
    ),
    "histopathology": (
        "Lung nodule on CT",
        "Weight loss",
        "Chronic cough",
        "Haemoptysis",
        "Incidental lung opacity",
        "Long smoking history",
        "Dyspnoea",
        "Night sweats",
    ),
    "mri": (
        "Headache",
        "Seizure",
        "Dizziness",
        "Blurred vision",
        "Memory problems",
        "Arm weakness",
        "Nausea in the morning",
        "Difficulty speaking",
    ),
    "ultrasound": (
        "Breast lump",
        "Breast tenderness",
        "Screening recall",
        "Family history",
        "Nipple discharge",
        "Routine screening",
        "Breast pain",
        "Swelling in the breast",
    ),
}

#: What an error costs in US dollars and how bad it is, by modality and care; round figures of the
#: order of the core set's `cost_impact`, for ranking errors and not for accounting.
OVERTREATMENT = {
    ("xray", "antibiotics"): ("moderate", 15_000),
    ("xray", "antivirals"): ("high", 20_000),
    ("histopathology", "oncology"): ("critical", 150_000),
    ("mri", "resection"): ("critical", 85_000),
    ("mri", "chemoradiation"): ("critical", 120_000),
    ("ultrasound", "biopsy"): ("moderate", 8_000),
}
UNDERTREATMENT = {
    ("xray", "antibiotics"): ("high", 25_000),
    ("xray", "antivirals"): ("high", 30_000),
    ("histopathology", "oncology"): ("critical", 200_000),
    ("mri", "resection"): ("high", 60_000),
    ("mri", "chemoradiation"): ("critical", 180_000),
    ("ultrasound", "biopsy"): ("critical", 150_000),
}


def findings_of(modality: str) -> list[Finding]:
    """All findings of a modality, in table order."""
    return [finding for finding in FINDINGS if finding.modality == modality]
