//! The manifests that start a server: for Docker Compose and for Kubernetes.

use serde_json::{Map, Value, json};

use crate::service::{Base, FILES, MODELS, PORT, Service};
use crate::yaml::to_yaml;

/// Where the container keeps what it downloads of the hub.
const HUB_CACHE: &str = "/huggingface";
/// Seconds a large model may take to load before its checks count.
const START: u32 = 1800;
/// What tensor-parallel workers share; Docker's own 64 MB make them fail.
const SHARED: &str = "16gb";

/// `docker-compose.yaml`; `files` is the folder on the host with the chat template, relative to the file.
pub fn compose(service: &Service, files: &str) -> String {
    let mut volumes = vec![bind(files, FILES)];
    volumes.extend(service.adapters.iter().map(|adapter| bind(&adapter.folder, &adapter.place())));
    let mut environment = Map::new();
    match &service.base {
        Base::Folder(folder) => {
            volumes.push(bind(folder, &format!("{MODELS}/base")));
            environment.insert("HF_HUB_OFFLINE".into(), "1".into());
        }
        Base::Hub(..) => {
            volumes.push(json!({"type": "volume", "source": "huggingface", "target": HUB_CACHE}));
            environment.insert("HF_HOME".into(), HUB_CACHE.into());
            environment.insert("HF_TOKEN".into(), "${HF_TOKEN:-}".into());
        }
    }
    let gpus = json!({"driver": "nvidia", "count": service.sizing.gpus, "capabilities": ["gpu"]});
    let check = ["CMD", "python3", "-c", HEALTH];
    let mut file = json!({
        "name": service.name,
        "services": {"vllm": {
            "image": escaped(&service.image),
            "command": service.arguments().iter().map(|argument| escaped(argument)).collect::<Vec<_>>(),
            "ports": [format!("{}:{PORT}", service.port)],
            "volumes": volumes,
            "environment": environment,
            "shm_size": SHARED,
            "deploy": {"resources": {"reservations": {"devices": [gpus]}}},
            "healthcheck": {
                "test": check, "interval": "30s", "timeout": "10s", "retries": 3, "start_period": format!("{START}s"),
            },
            "restart": "unless-stopped",
        }},
    });
    if matches!(service.base, Base::Hub(..)) {
        file["volumes"] = json!({"huggingface": {}});
    }
    format!("{}{}", head(service, "docker compose up -d"), to_yaml(&file))
}

/// Asks the server whether it is well, with what is in every image of vLLM.
const HEALTH: &str = "import urllib.request; urllib.request.urlopen('http://localhost:8000/health', timeout=5)";

/// A folder of the host, only to be read.
fn bind(source: &str, target: &str) -> Value {
    json!({"type": "bind", "source": escaped(source), "target": target, "read_only": true})
}

/// A dollar sign is a variable in a compose file, unless there are two.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}

/// A Kubernetes Deployment and Service. Folders are the nodes' own (`hostPath`), at the places they have here.
pub fn kubernetes(service: &Service, files: &str) -> String {
    let mut volumes = vec![
        json!({"name": "deploy", "hostPath": {"path": files, "type": "Directory"}}),
        json!({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}),
    ];
    let mut mounts = vec![
        json!({"name": "deploy", "mountPath": FILES, "readOnly": true}),
        json!({"name": "shm", "mountPath": "/dev/shm"}),
    ];
    let mut folder = |name: &str, path: &str, place: &str| {
        volumes.push(json!({"name": name, "hostPath": {"path": path, "type": "Directory"}}));
        mounts.push(json!({"name": name, "mountPath": place, "readOnly": true}));
    };
    for adapter in &service.adapters {
        folder(&format!("adapter-{}", adapter.name), &adapter.folder, &adapter.place());
    }
    let mut variables = vec![];
    match &service.base {
        Base::Folder(path) => {
            folder("base", path, &format!("{MODELS}/base"));
            variables.push(json!({"name": "HF_HUB_OFFLINE", "value": "1"}));
        }
        Base::Hub(..) => {
            volumes.push(json!({"name": "huggingface", "emptyDir": {}}));
            mounts.push(json!({"name": "huggingface", "mountPath": HUB_CACHE}));
            let secret = json!({"secretKeyRef": {"name": "huggingface", "key": "token", "optional": true}});
            variables.push(json!({"name": "HF_HOME", "value": HUB_CACHE}));
            variables.push(json!({"name": "HF_TOKEN", "valueFrom": secret}));
        }
    }
    let health = json!({"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10, "timeoutSeconds": 5});
    let mut startup = health.clone();
    startup["failureThreshold"] = (START / 10).into();
    let labels = json!({"app": service.name});
    let container = json!({
        "name": "vllm",
        "image": service.image,
        "args": service.arguments(),
        "env": variables,
        "ports": [{"containerPort": PORT, "name": "http"}],
        "resources": {"limits": {"nvidia.com/gpu": service.sizing.gpus}},
        "volumeMounts": mounts,
        "startupProbe": startup,
        "readinessProbe": health,
        "livenessProbe": health,
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": service.name, "labels": labels},
        "spec": {
            "replicas": 1,
            // The old server must let go of the GPUs before the new one takes them.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": volumes}},
        },
    });
    let reached = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": service.port, "targetPort": "http"}]},
    });
    let head = head(service, "kubectl apply -f kubernetes.yaml");
    format!("{head}{}---\n{}", to_yaml(&deployment), to_yaml(&reached))
}

/// What a reader must know first.
fn head(service: &Service, command: &str) -> String {
    let sizing = &service.sizing;
    let mut text = format!(
        "# Written by `ferrotune deploy`. Start it with `{command}`.\n# Ask for the model {}{}\n",
        service.names(),
        match service.is_adapted() {
            true => format!(": `{}` is the base, which wasn't trained.", service.base_name()),
            false => ".".to_owned(),
        }
    );
    text.push_str(&format!(
        "# {:.1} GiB of weights on each of {} GPU(s), room for {} tokens of all conversations.\n",
        sizing.weights_gib, sizing.gpus, sizing.cache_tokens
    ));
    text
}
