"""Values of the Helm chart, as its users write them."""

from support.chart import Values

DIGEST = "sha256:" + "ab" * 32

# What is installed, as a user's own values file says it.
MATRIX: dict[str, Values] = {
    "the defaults": {},
    "a RayCluster": {"kind": "RayCluster"},
    "another name": {"fullnameOverride": "agents"},
    "an image by digest": {"image": {"digest": DIGEST, "pullSecrets": ["registry"]}},
    "an image by tag": {"image": {"repository": "registry.local:5000/agents", "tag": "1.2.3-rc.1"}},
    "GCS in Redis": {
        "gcsFaultTolerance": {
            "backend": "redis",
            "redis": {"address": "rediss://cache.data.svc:6380"},
        },
        "networkPolicies": {"redis": {"namespace": "data", "port": 6380}},
    },
    "GCS in RocksDB": {
        "gcsFaultTolerance": {"backend": "rocksdb", "rocksdb": {"storageClassName": "fast"}}
    },
    "several pools": {
        "config": {
            "pools": {
                "default": None,
                "quick": {"subjects": ["agent.tasks.qa"], "task_timeout_s": 30.5, "actors": 4},
                "slow": {"subjects": ["agent.tasks.dev"], "task_timeout_s": 1800.2},
                "usual": {"subjects": ["agent.tasks.data"]},
            }
        }
    },
    "the service's own pool": {"config": {"pools": {"default": None}}},
    "several groups of workers": {
        "workerGroups": {
            "workers": None,
            "small": {"minReplicas": 1, "replicas": 1, "idleTimeoutSeconds": 2_592_000},
            "big": {
                "replicas": 3,
                "minReplicas": 3,
                "resources": {"requests": {"cpu": 8}, "limits": {"cpu": 8, "memory": "16Gi"}},
                "rayLabels": {"size": "big"},
                "rayStartParams": {"resources": '"{\\"fast_disk\\": 1}"'},
                "workspaces": {"claimName": "workspaces"},
                "objectStoreMemoryBytes": 1073741824,
            },
        }
    },
    "a fixed size": {
        "config": {"pools": {"default": {"actors": 8}}},
        "autoscaling": {"enabled": False},
        "worker": {"replicas": 5},
    },
    "by Kueue's leave": {
        "autoscaling": {"enabled": False},
        "kueue": {"queueName": "agents"},
        "worker": {"replicas": 6},
    },
    "without policies": {"networkPolicies": {"enabled": False}},
    "other neighbours": {
        "config": {
            "nats": {"url": "tls://nats.messaging.svc:4333"},
            "vllm": {"urls": ["http://router.models.svc:8000", "http://spare.models.svc:8000"]},
        },
        "networkPolicies": {
            "wholeNamespace": True,
            "nats": {"namespace": "messaging", "podLabels": {"app": "nats"}, "port": 4333},
            "vllm": {"namespace": "models", "podLabels": {"app": "router"}},
            "monitoring": {"namespace": "observing"},
            "kubernetesApi": {"cidrs": ["192.0.2.7/32"], "ports": [6443]},
            "extraWorkerEgress": [
                {
                    "to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}],
                    "ports": [{"port": 443, "protocol": "TCP"}],
                }
            ],
        },
    },
    "without budgets": {"disruptionBudgets": {"enabled": False}},
    "without provisioning": {"provision": {"enabled": False}, "secrets": {"provisioner": ""}},
    "without credentials": {
        "config": {
            "nats": {"url": "nats://nats.nats.svc", "nkey_seed_file": None, "tls": None},
            "vllm": {"api_key_file": None},
        },
        "secrets": {"nats": "", "natsCa": "", "vllm": "", "provisioner": ""},
    },
    "a token of one's own": {"secrets": {"rayToken": "ray-token"}},
    "with Prometheus": {"podMonitor": {"enabled": True, "labels": {"release": "metrics"}}},
    "with all that can be added": {
        "labels": {"team": "agents"},
        "annotations": {"example.org/owner": "agents"},
        "extraEnv": [
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {
                "name": "AGENT_ACTORS_VLLM_API_KEY",
                "valueFrom": {"secretKeyRef": {"name": "vllm", "key": "key"}},
            },
        ],
        "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
        "provision": {
            "extraEnv": [{"name": "AGENT_ACTORS_LOG_LEVEL", "value": "debug"}],
            "podAnnotations": {"example.org/role": "provision"},
            "podLabels": {"team": "agents"},
            "nodeSelector": {"pool": "steady"},
            "tolerations": [{"operator": "Exists"}],
        },
        "head": {
            "podAnnotations": {"example.org/role": "head"},
            "priorityClassName": "high",
            "nodeSelector": {"pool": "steady"},
            "rayLabels": {"market": "on-demand"},
        },
        "worker": {
            "podLabels": {"team": "agents"},
            "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
            "nodeSelector": {"pool": "spot"},
            "affinity": {
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 1,
                            "podAffinityTerm": {
                                "topologyKey": "kubernetes.io/hostname",
                                "labelSelector": {"matchLabels": {"app": "noisy"}},
                            },
                        }
                    ]
                }
            },
            "topologySpread": [
                {
                    "maxSkew": 2,
                    "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "DoNotSchedule",
                }
            ],
        },
    },
}
