# The front door: every target is one line of mlctl, which does the work (mlctl/__main__.py).

MLCTL := tools/python -m mlctl

.DEFAULT_GOAL := help
.PHONY: help run test up down status password ui logs train infer trigger promote rollback approve \
        upgrade-airflow new-dag sync kubeconfig doctor lint chart images images-list images-save \
        images-load lock bench growth soak drill mutation package backup restore clean clean-cache \
        test-mlctl test-chart test-dags test-images test-workload test-cluster test-e2e test-long \
        test-production test-wandb screenshots

help: ## Show the targets and variables (this text)
	@awk -f tools/help.awk $(MAKEFILE_LIST)

run: ## Cluster, images, chart, then training_dag and inference_dag, and what came out
	@$(MLCTL) run
test: ## Every test: lint, mlctl, chart, DAGs, images, workload, cluster, end to end
	@$(MLCTL) test
up: ## The same as run, without the two DAG runs
	@$(MLCTL) up
down: ## Stop the cluster; its data stays
	@$(MLCTL) down
status: ## Cluster, release, pods, newest runs and why they failed, model, storage, pages (JSON=1)
	@$(MLCTL) status
password: ## Print the password of the Airflow pages
	@$(MLCTL) password
ui: ## Forward the Airflow and MLflow pages until Ctrl-C
	@$(MLCTL) ui
logs: ## Task states and last log lines of the newest runs (DAG=name: of one; C=kubelet: of a part)
	@$(MLCTL) logs
train: ## Trigger training_dag and wait (N=5: five runs at once)
	@$(MLCTL) train
infer: ## Trigger inference_dag and wait (N=5: five runs at once)
	@$(MLCTL) infer
trigger: ## Trigger any DAG and wait (DAG=name)
	@$(MLCTL) trigger
promote: ## Let inference load a version of the model (V=3 REASON='...'), whatever its gate has said
	@$(MLCTL) promote
rollback: ## Let inference load the version before it again (REASON='...')
	@$(MLCTL) rollback
approve: ## Approve the model of a training that waits for it (RUN=id; default: the newest)
	@$(MLCTL) approve
upgrade-airflow: ## From Airflow 2 to 3, with runs, Variables, Connections and users (YES=1)
	@$(MLCTL) upgrade-airflow
new-dag: ## Write a DAG and its test, to begin with (NAME=churn)
	@$(MLCTL) new-dag
sync: ## Publish uncommitted work under dags/, without touching branch or index
	@$(MLCTL) sync
kubeconfig: ## Print the path of the kubeconfig
	@$(MLCTL) kubeconfig
doctor: ## Say whether this machine can run the cluster, and what to do if not
	@$(MLCTL) doctor
lint: ## ruff, yamllint, gofmt, import contracts
	@$(MLCTL) test lint
chart: ## Fetch the locked dependency of the chart
	@$(MLCTL) chart
images: ## Build the images (cached by content)
	@$(MLCTL) images build
images-list: ## The images that a release with ENV and VALUES runs
	@$(MLCTL) images list
images-save: ## All of them in one tar, for a place without a network (FILE=images.tar)
	@$(MLCTL) images save-all
images-load: ## Push the images of such a tar into a registry (FILE=images.tar REGISTRY=name/path)
	@$(MLCTL) images load
lock: ## Resolve requirements/*.in anew
	@$(MLCTL) lock
bench: ## What a task costs here and on the official chart, and when a commit shows (docs/benchmark.md)
	@$(MLCTL) bench
growth: ## What becomes of the figures with 1,000 DAGs, 500 queued runs, 1,000 waiting tasks
	@$(MLCTL) growth
soak: ## 20 runs of both DAGs and a mapped one at once (N=5 MAPPED=0), checked by what they left
	@$(MLCTL) soak
drill: ## Break one part after the other in the middle of training runs (FAULT=oom: this one)
	@$(MLCTL) drill
mutation: ## Change dags/ml_pipelines in every small way: do the DAG tests find it? (no cluster)
	@$(MLCTL) mutation
package: ## Package the chart into build/ (KEY=name KEYRING=file: signed)
	@$(MLCTL) package
backup: ## Database, models and keys of the release into a directory (DIR=build/backups/TIME)
	@$(MLCTL) backup
restore: ## Put a backup into the release, in place of what it has (DIR=directory)
	@$(MLCTL) restore
clean: ## Delete the cluster and its data
	@$(MLCTL) clean
clean-cache: ## Delete what builds have left in the cache, after saying how much it is
	@$(MLCTL) clean-cache
test-mlctl: ## Tests of the commands themselves
	@$(MLCTL) test mlctl
test-chart: ## Render tests of the chart (no cluster)
	@$(MLCTL) test chart
test-dags: ## DAG tests on Airflow 2.9.3 and on the newest Airflow 3 (no cluster)
	@$(MLCTL) test dags dags-airflow3
test-images: ## Tests of the built images
	@$(MLCTL) test images
test-workload: ## Tests of the workload, inside its image
	@$(MLCTL) test workload
test-cluster: ## Tests of the cluster providers
	@$(MLCTL) test cluster
test-e2e: ## Install and run everything on a cluster of its own
	@$(MLCTL) test e2e
test-long: ## Soak, faults, killed trainings, lost cluster, upgrade, install paths, pages, production, mutants
	@$(MLCTL) up
	@$(MLCTL) soak --n 3
	@$(MLCTL) drill
	@$(MLCTL) test-trainings
	@$(MLCTL) test-loss
	@$(MLCTL) screenshots
	@$(MLCTL) screenshots --airflow 3
	@$(MLCTL) test e2e --airflow 3 --k 'test_ui or test_inference'
	@$(MLCTL) test e2e --airflow 3 --values tests/e2e/one_pod.yaml --k 'test_one_pod or test_inference'
	@$(MLCTL) test-production
	@$(MLCTL) mutation
test-production: ## values/production.yaml as its page fills it, from an empty cluster to the end
	@$(MLCTL) test-production
screenshots: ## Take the pictures of the pages for docs/pictures anew, on a cluster of its own
	@$(MLCTL) screenshots
test-wandb: ## Upload and load a small model at the real W&B service (needs WANDB_API_KEY)
	@$(MLCTL) test-wandb

#: ENV=local            values/$(ENV).yaml: local, staging, production
#: AIRFLOW=3            Airflow 3.3.2 in place of 2.9.3 (docs/airflow3.md)
#: CLUSTER=embedded     embedded, kind or existing (default: kind with a Docker engine, else embedded)
#: CLUSTER_NAME=name    several clusters beside each other (default: ml-pipelines)
#: OUTBOUND=1           pods of the embedded cluster reach the network (0: no more); kept until changed
#: VALUES=file.yaml     a values file of your own, on top of values/$(ENV).yaml
#: DAG=name             the DAG of `make trigger`, and of `make logs`
#: NAME=name            the DAG that `make new-dag` writes
#: PARAMS='{"a": 1}'    parameters of the runs that `make train`, `infer` and `trigger` start
#: V=3                  the version of the model that `make promote` takes
#: REASON='...'         why, for the version's tags, of `make promote` and `make rollback`
#: RUN=id               the run of training_dag that `make approve` lets go on
#: N=1                  runs that `make train`, `infer` and `trigger` start (20 for `make soak`)
#: MAPPED=20            runs of the mapped DAG that `make soak` starts
#: FILE=images.tar      the tar of `make images-save` and `images-load`
#: REGISTRY=name/path   the registry that `make images-load` fills
#: DIR=directory        of `make backup` and `make restore`
#: KEY=name             the key that `make package` signs with, in the file KEYRING=secring.gpg,
#: PASSPHRASE_FILE=file and what opens it, if it needs that
#: C=name               the part of the cluster whose log `make logs` shows
#: FAULT=name,name      the faults of `make drill` (default: all)
#: K=expression         what pytest's -k takes, for the test targets
#: JSON=1               one JSON object in place of the tables of `make status`
#: YES=1                install missing Debian packages without asking
#: QUIET=1              results and errors, no progress
