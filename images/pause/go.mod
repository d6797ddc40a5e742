module ml-pipelines/pause

go 1.24
