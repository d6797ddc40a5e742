# Prints the targets ("name: ## text") and variables ("#: NAME=default  text") of the Makefile.
BEGIN { FS = ":.*## "; print "usage: make [target] [VARIABLE=value]\n" }
/^[a-z0-9-]+:.*## / { printf "  %-15s %s\n", $1, $2 }
/^#: / { variables = variables "  " substr($0, 4) "\n" }
END { printf "\n%s", variables }
