package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// provisionerName is what the cluster's StorageClasses name as their provisioner.
const provisionerName = "ml-pipelines/directory"

// likeNFS is the parameter, with any value, of a class whose volumes are as plain NFS gives them: the
// root belongs to root with mode 0755, and the kubelet hands nothing to a pod's fsGroup.
const likeNFS = "likeNFS"

// directoryProvisioner answers a claim with a directory of the node, as kind's and k3s's
// default storage class do. On a single node a directory serves every access mode.
type directoryProvisioner struct {
	root string
	node string
}

// Provision makes the directory and the volume that stands for it.
func (p directoryProvisioner) Provision(_ context.Context, options controller.ProvisionOptions) (*core.PersistentVolume, controller.ProvisioningState, error) {
	claim := options.PVC
	if claim.Spec.Selector != nil {
		return nil, controller.ProvisioningFinished, errors.New("claim selectors are not supported")
	}
	path := filepath.Join(p.root, fmt.Sprintf("%s_%s_%s", options.PVName, claim.Namespace, claim.Name))
	// World-writable, as kind's class makes it: images run as many users. And `local`, not
	// `hostPath`: the kubelet applies fsGroup to it.
	mode := os.FileMode(0o777)
	source := core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: path}}
	if _, plain := options.StorageClass.Parameters[likeNFS]; plain {
		mode = 0o755
		source = core.PersistentVolumeSource{HostPath: &core.HostPathVolumeSource{Path: path}}
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: options.PVName},
		Spec: core.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   claim.Spec.AccessModes,
			MountOptions:                  options.StorageClass.MountOptions,
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			PersistentVolumeSource:        source,
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{
				NodeSelectorTerms: []core.NodeSelectorTerm{{
					MatchExpressions: []core.NodeSelectorRequirement{{
						Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{p.node},
					}},
				}},
			}},
		},
	}, controller.ProvisioningFinished, nil
}

// Delete removes the directory of a released volume, and only one that this program made.
func (p directoryProvisioner) Delete(_ context.Context, volume *core.PersistentVolume) error {
	var path string
	switch {
	case volume.Spec.Local != nil:
		path = filepath.Clean(volume.Spec.Local.Path)
	case volume.Spec.HostPath != nil:
		path = filepath.Clean(volume.Spec.HostPath.Path)
	default:
		return fmt.Errorf("volume %s is no directory of this node", volume.Name)
	}
	if filepath.Dir(path) != filepath.Clean(p.root) {
		return fmt.Errorf("volume %s: %s is not below %s", volume.Name, path, p.root)
	}
	return os.RemoveAll(path)
}

func runStorageProvisioner() int {
	flags := flag.NewFlagSet("storage-provisioner", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "how to reach the API server")
	root := flags.String("root", "", "directory that holds the volumes, a directory each")
	node := flags.String("node", "", "name of the node whose directories they are")
	_ = flags.Parse(os.Args[1:]) // ExitOnError

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.ErrorS(err, "cannot read the kubeconfig", "path", *kubeconfig)
		return 1
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		klog.ErrorS(err, "cannot make a client")
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	controller.NewProvisionController(
		ctx, client, provisionerName, directoryProvisioner{root: *root, node: *node},
		controller.LeaderElection(false),
	).Run(ctx)
	return 0
}
