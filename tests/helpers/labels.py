"""Ids of DAGs, tasks and runs, and the labels that their pods carry.

A label is what Airflow's `make_safe_label_value` makes of the id: unsafe characters go, and if that
has changed anything, or left more than 63 characters, the end becomes `-` and nine digits of the
id's MD5. Of an id without one safe character only `-` and digits would stay: Kubernetes refuses a
label that begins with `-`, so that the local settings of every Airflow process take it away.

The directory of a run is made of the two labels: `<label of the DAG's id>/<label of the run's id>`.
"""

LABELS: list[tuple[str, str]] = [
    ("training_dag", "training_dag"),
    ("group.train-model", "group.train-model"),
    ("A", "A"),
    ("a", "a"),
    ("manual__2026-11-23T09:00:00+00:00", "manual__2026-11-23T0900000000-2e7c2519c"),
    (
        "scheduled__2026-11-23T09:00:00.123456+00:00",
        "scheduled__2026-11-23T090000.1234560000-3b1b44857",
    ),
    (
        "manual__2026-11-23T09:00:00+00:00_aBcD1234",
        "manual__2026-11-23T0900000000_aBcD1234-868312bd9",
    ),
    ("a+b", "ab-65c884f74"),
    ("a:b", "ab-d8160c9b3"),
    ("a b", "ab-0cc9cd4dd"),
    ("a/b", "ab-a7e861365"),
    ("-rf", "rf-e6c270659"),
    (".hidden", "hidden-6b96ab441"),
    ("_private_", "private-0a954401a"),
    ("ends.", "ends-c426bd81d"),
    ("../../etc", "etc-80c4558e4"),
    ("`reboot`; rm -rf {{ x }}", "rebootrm-rfx-8e28614a0"),
    ("für-ein-Modell-№1", "fr-ein-Modell-1-6a6b6ed11"),
    # Without one safe character.
    (".", "5058f1af8"),
    ("..", "58b9e70b6"),
    ("模型训练", "28151a39f"),
    ("обучение_модели", "05a949e14"),
    ("🤖", "b6600eb3d"),
    # As long as a label may be, and longer.
    ("x" * 63, "x" * 63),
    ("x" * 64, "x" * 53 + "-c1bb4f81d"),
    ("x" * 250, "x" * 53 + "-79c1514b2"),
    ("x" * 249 + "y", "x" * 53 + "-89c928e91"),
    ("x" * 52 + "." + "y" * 20, "x" * 52 + ".-5264c2440"),
]
