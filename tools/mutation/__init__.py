"""Mutation testing of dags/ml_pipelines: do the DAG tests notice when a line of it is wrong?

Three programs, as each needs an environment of its own: `mutants` makes the mutants with mutmut
(requirements/mutation.txt), `trial` runs the tests on each of them (Airflow), and `__main__` asks
for both and judges.
"""
