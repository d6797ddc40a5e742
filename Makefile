# The front door: every target is one call, the work is done in Python below tools/.

PY := tools/python

.DEFAULT_GOAL := help
.PHONY: help run test up down status password ui logs train infer sync kubeconfig doctor lint chart images \
        lock bench soak drill package clean clean-cache test-tools test-chart test-dags test-images \
        test-workload test-cluster test-e2e test-wandb

help: ## Show the targets and variables (this text)
	@awk -f tools/help.awk $(MAKEFILE_LIST)

run: ## Cluster, images, chart, then training_dag and inference_dag, and what came out
	@$(PY) -m mlctl.commands.runs run
test: ## Every test: lint, tools, chart, DAGs, images, workload, cluster, end to end
	@$(PY) -m tools.test
up: ## The same as run, without the two DAG runs
	@$(PY) -m mlctl.commands.runs up
down: ## Stop the cluster; its data stays
	@$(PY) -m mlctl.commands.cluster down
status: ## The cluster, the release, its pods and the newest DAG runs
	@$(PY) -m mlctl.commands.runs status
password: ## Print the password of the Airflow pages
	@$(PY) -m mlctl.commands.runs password
ui: ## Forward the Airflow and MLflow pages until Ctrl-C
	@$(PY) -m mlctl.commands.runs ui
logs: ## Task states and last log lines of the newest runs (C=kubelet: a part of the cluster)
	@$(PY) -m mlctl.commands.runs logs
train: ## Trigger training_dag and wait (N=5: five runs at once)
	@$(PY) -m mlctl.commands.runs train
infer: ## Trigger inference_dag and wait (N=5: five runs at once)
	@$(PY) -m mlctl.commands.runs infer
sync: ## Publish uncommitted work under dags/, without touching branch or index
	@$(PY) -m mlctl.commands.runs sync
kubeconfig: ## Print the path of the kubeconfig
	@$(PY) -m mlctl.commands.cluster kubeconfig
doctor: ## Say whether this machine can run the cluster, and what to do if not
	@$(PY) -m mlctl.commands.cluster doctor
lint: ## ruff, yamllint, gofmt, go vet, helm lint
	@$(PY) -m tools.test lint vet
chart: ## Fetch the locked dependency of the chart
	@$(PY) -m mlctl.release.chart dependency
images: ## Build the images (cached by content)
	@$(PY) -m mlctl.commands.images
lock: ## Resolve requirements/*.in anew
	@$(PY) -m tools.lock
bench: ## What a task costs, and when a commit shows in Airflow
	@$(PY) -m mlctl.trials.bench
soak: ## 20 runs of both DAGs at once (N=5: five), each checked by what it left
	@$(PY) -m mlctl.trials.soak
drill: ## Break one part after the other in the middle of training runs (FAULT=oom: this one)
	@$(PY) -m mlctl.trials.drill
package: ## Package the chart into build/
	@$(PY) -m mlctl.release.release package
clean: ## Delete the cluster and its data
	@$(PY) -m mlctl.commands.cluster clean
clean-cache: ## Delete what builds have left in the cache, after saying how much it is
	@$(PY) -m mlctl.base.prune all
test-tools: ## Tests of the commands themselves
	@$(PY) -m tools.test mlctl
test-chart: ## Render tests of the chart (no cluster)
	@$(PY) -m tools.test chart
test-dags: ## DAG tests on Airflow 2.9.3 and on the newest Airflow 3 (no cluster)
	@$(PY) -m tools.test dags dags-airflow3
test-images: ## Tests of the built images
	@$(PY) -m tools.test images
test-workload: ## Tests of the workload, inside its image
	@$(PY) -m tools.test workload
test-cluster: ## Tests of the cluster providers
	@$(PY) -m tools.test cluster
test-e2e: ## Install and run everything on a cluster of its own
	@$(PY) -m tools.test e2e
test-wandb: ## Upload and load a small model at the real W&B service (needs WANDB_API_KEY)
	@$(PY) -m mlctl.commands.images test-wandb

#: ENV=local            values/$(ENV).yaml: local, staging, production
#: CLUSTER=embedded     embedded, kind or existing (default: kind with a Docker engine, else embedded)
#: CLUSTER_NAME=name    several clusters beside each other (default: ml-pipelines)
#: OUTBOUND=1           pods of the embedded cluster reach the network (0: no more); kept until changed
#: VALUES=file.yaml     a values file of your own, on top of values/$(ENV).yaml
#: N=1                  runs that `make train` and `make infer` start (20 for `make soak`)
#: C=name               the part of the cluster whose log `make logs` shows
#: FAULT=name,name      the faults of `make drill` (default: all)
#: K=expression         what pytest's -k takes, for the test targets
#: YES=1                install missing Debian packages without asking
