//! The files that are written: against the schema of compose files, against Kubernetes' fields, and by their meaning.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod schema;

use ferrotune_checkpoint::Vllm;
use ferrotune_deploy::{Adapter, Base, Service, Sizing, compose, curl, kubernetes, model_name, python};
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value, json};
use std::process::Command;

fn adapter(name: &str, folder: &str, max_lora_rank: Option<usize>) -> Adapter {
    Adapter { name: name.into(), folder: folder.into(), max_lora_rank }
}

fn service() -> Service {
    Service {
        image: "vllm/vllm-openai:v0.11.0".into(),
        vllm: Vllm::V0_11,
        name: "ferro".into(),
        base: Base::Folder("/data/models/Qwen3-32B".into()),
        adapters: vec![adapter("ferro", "/runs/it's $5 \"x\"", Some(32))],
        sizing: Sizing { gpus: 2, max_model_len: 36_000, cache_tokens: 56_000, weights_gib: 30.5 },
        port: 8000,
        kwargs: [("enable_thinking".to_owned(), false.into())].into_iter().collect(),
        generation: Some(json!({"eos_token_id": [2, 0]})),
        overrides: Some(json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}})),
    }
}

/// Every kind of service there is.
fn services() -> Vec<Service> {
    let hub = Base::Hub("Qwen/Qwen3-32B".into(), Some("main".into()));
    let plain = adapter("a", "/runs/a", None);
    let both = vec![plain.clone(), adapter("b", "/runs/b", Some(64))];
    vec![
        service(),
        Service { base: hub.clone(), adapters: vec![plain], kwargs: Map::new(), ..service() },
        Service { name: "a".into(), adapters: both, ..service() },
        Service { base: hub, adapters: vec![], ..service() },
        Service { adapters: vec![], port: 9000, ..service() },
    ]
}

/// A YAML document as JSON, by the parser that recipes are read with.
fn yaml(text: &str) -> Value {
    enum Open {
        List(Vec<Value>),
        Map(Map<String, Value>, Option<String>),
    }
    let mut open = Vec::new();
    let mut root = Value::Null;
    for event in Parser::new_from_str(text) {
        let value = match event.unwrap().0 {
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop().unwrap() {
                Open::List(items) => Value::Array(items),
                Open::Map(entries, None) => Value::Object(entries),
                Open::Map(..) => panic!("a key without a value"),
            },
            Event::Scalar(text, ScalarStyle::Plain, ..) => {
                serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.into_owned()))
            }
            Event::Scalar(text, ..) => Value::String(text.into_owned()),
            _ => continue,
        };
        match open.last_mut() {
            None => root = value,
            Some(Open::List(items)) => items.push(value),
            Some(Open::Map(entries, key)) => match key.take() {
                None => *key = Some(value.as_str().unwrap().to_owned()),
                Some(key) => assert!(entries.insert(key, value).is_none(), "a key twice"),
            },
        }
    }
    root
}

/// The value behind an option in a list of arguments.
fn option<'a>(arguments: &'a Value, name: &str) -> Option<&'a str> {
    let arguments = arguments.as_array().unwrap();
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments[at + 1].as_str()
}

#[test]
fn compose_files_are_what_their_schema_wants() {
    let schema = schema::Schema::read("compose-spec.json");
    for service in services() {
        let file = yaml(&compose(&service, "./deploy"));
        assert_eq!(schema.faults(&file), Vec::<String>::new());
        let vllm = &file["services"]["vllm"];
        let devices = &vllm["deploy"]["resources"]["reservations"]["devices"][0];
        assert_eq!((&devices["count"], &devices["capabilities"]), (&json!(2), &json!(["gpu"])));
        assert_eq!(vllm["ports"], json!([format!("{}:8000", service.port)]));
        assert_eq!(vllm["shm_size"], "16gb");
        let command = &vllm["command"];
        assert_eq!(option(command, "--max-model-len"), Some("36000"));
        assert_eq!(option(command, "--tensor-parallel-size"), Some("2"));
        assert_eq!(option(command, "--hf-overrides"), Some(r#"{"rope_scaling":{"rope_type":"yarn","factor":2.0}}"#));
        assert_eq!(option(command, "--chat-template"), Some("/deploy/chat_template.jinja"));
        // Every path of the command lies in a folder that is mounted.
        let targets: Vec<&str> =
            vllm["volumes"].as_array().unwrap().iter().filter_map(|v| v["target"].as_str()).collect();
        let paths = command.as_array().unwrap().iter().filter_map(Value::as_str).filter_map(|argument| {
            let path = argument.split('=').next_back()?;
            path.starts_with('/').then_some(path)
        });
        for path in paths {
            assert!(targets.iter().any(|target| path.starts_with(target)), "{path} in {targets:?}");
        }
    }
}

#[test]
fn the_schema_refuses_what_is_wrong() {
    let schema = schema::Schema::read("compose-spec.json");
    let good = yaml(&compose(&service(), "."));
    let wrong = |change: fn(&mut Value)| {
        let mut file = good.clone();
        change(&mut file["services"]["vllm"]);
        !schema.faults(&file).is_empty()
    };
    assert!(!wrong(|_| {}));
    assert!(wrong(|vllm| vllm["shm_sizes"] = json!("1gb")));
    assert!(wrong(|vllm| vllm["image"] = json!(["a"])));
    assert!(wrong(|vllm| vllm["volumes"][0]["type"] = json!(7)));
    assert!(wrong(|vllm| vllm["healthcheck"]["retries"] = json!({})));
    assert!(wrong(|vllm| drop(vllm["volumes"][0].as_object_mut().unwrap().shift_remove("type"))));
    assert!(wrong(|vllm| vllm["ports"] = json!([[]])));
}

#[test]
fn the_adapter_and_its_base_cannot_be_confused() {
    let file = yaml(&compose(&service(), "."));
    let command = &file["services"]["vllm"]["command"];
    assert_eq!(option(command, "--lora-modules"), Some("ferro=/models/adapters/ferro"));
    assert_eq!(option(command, "--served-model-name"), Some("ferro-untrained-base"));
    assert_eq!(option(command, "--max-lora-rank"), Some("32"));
    assert_eq!(option(command, "--max-loras"), Some("2"));
    assert!(command.as_array().unwrap().iter().any(|argument| argument == "--enable-lora"));
    // A path with a dollar, as compose reads it.
    assert_eq!(file["services"]["vllm"]["volumes"][1]["source"], "/runs/it's $$5 \"x\"");
    let merged = yaml(&compose(&Service { adapters: vec![], ..service() }, "."));
    let command = &merged["services"]["vllm"]["command"];
    assert_eq!(option(command, "--served-model-name"), Some("ferro"));
    assert!(option(command, "--lora-modules").is_none() && option(command, "--max-loras").is_none());
}

#[test]
fn several_adapters_are_served_side_by_side() {
    let text = compose(&services()[2], ".");
    assert!(text.contains("# Ask for the model `a` or `b`: `a-untrained-base` is the base"), "{text}");
    let file = yaml(&text);
    let command = file["services"]["vllm"]["command"].as_array().unwrap();
    let at = command.iter().position(|argument| argument == "--lora-modules").unwrap();
    assert_eq!(command[at + 1..], ["a=/models/adapters/a", "b=/models/adapters/b"]);
    let command = &file["services"]["vllm"]["command"];
    assert_eq!((option(command, "--max-loras"), option(command, "--max-lora-rank")), (Some("3"), Some("64")));
    let folders: Vec<&Value> = file["services"]["vllm"]["volumes"].as_array().unwrap().iter().collect();
    assert_eq!((&folders[1]["source"], &folders[2]["target"]), (&json!("/runs/a"), &json!("/models/adapters/b")));
}

/// Fields of Kubernetes' objects that the manifest uses, those that must be there marked `!`, from the API reference of
/// `apps/v1` and `core/v1`. A place that isn't listed may hold anything.
const FIELDS: &[(&str, &str)] = &[
    ("", "apiVersion! kind! metadata! spec!"),
    ("metadata", "name! namespace labels annotations"),
    ("Deployment.spec", "replicas strategy selector! template! minReadySeconds progressDeadlineSeconds"),
    ("Deployment.spec.strategy", "type! rollingUpdate"),
    ("Deployment.spec.selector", "matchLabels! matchExpressions"),
    ("Deployment.spec.template", "metadata! spec!"),
    ("Deployment.spec.template.metadata", "labels! annotations"),
    ("Deployment.spec.template.spec", "containers! volumes nodeSelector tolerations runtimeClassName"),
    (
        "Deployment.spec.template.spec.containers[]",
        "name! image! args command env ports resources volumeMounts startupProbe readinessProbe livenessProbe",
    ),
    ("Deployment.spec.template.spec.containers[].ports[]", "containerPort! name protocol"),
    ("Deployment.spec.template.spec.containers[].env[]", "name! value valueFrom"),
    ("Deployment.spec.template.spec.containers[].env[].valueFrom", "secretKeyRef"),
    ("Deployment.spec.template.spec.containers[].env[].valueFrom.secretKeyRef", "name key! optional"),
    ("Deployment.spec.template.spec.containers[].resources", "limits requests"),
    ("Deployment.spec.template.spec.containers[].volumeMounts[]", "name! mountPath! readOnly subPath"),
    ("Deployment.spec.template.spec.volumes[]", "name! hostPath emptyDir persistentVolumeClaim"),
    ("Deployment.spec.template.spec.volumes[].hostPath", "path! type"),
    ("Deployment.spec.template.spec.volumes[].emptyDir", "medium sizeLimit"),
    ("Service.spec", "selector ports! type"),
    ("Service.spec.ports[]", "name port! targetPort protocol"),
];
const PROBE: &str = "httpGet periodSeconds timeoutSeconds failureThreshold initialDelaySeconds";

fn check_fields(value: &Value, place: &str) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| check_fields(item, &format!("{place}[]"))),
        Value::Object(entries) => {
            let free = ["labels", "matchLabels", "limits", "httpGet", "Service.spec.selector"]
                .iter()
                .any(|end| place.ends_with(end));
            if free {
                return;
            }
            let row = FIELDS.iter().find(|(of, _)| *of == place).map(|(_, row)| *row);
            let row = row.or(place.ends_with("Probe").then_some(PROBE)).unwrap_or_else(|| panic!("no row for {place}"));
            for name in row.split(' ').filter_map(|name| name.strip_suffix('!')) {
                assert!(entries.contains_key(name), "{place} has no {name}");
            }
            for (key, inner) in entries {
                assert!(row.split(' ').any(|name| name.trim_end_matches('!') == key), "{place} has no field {key}");
                let below = match (place, key.as_str()) {
                    ("", "spec") => format!("{}.spec", entries["kind"].as_str().unwrap()),
                    ("", key) => key.to_owned(),
                    (place, key) => format!("{place}.{key}"),
                };
                check_fields(inner, &below);
            }
        }
        _ => {}
    }
}

#[test]
fn the_kubernetes_manifest_has_known_fields_and_hangs_together() {
    for service in services() {
        let text = kubernetes(&service, "/runs/out/deploy");
        let documents: Vec<Value> = text.split("---\n").map(yaml).collect();
        assert_eq!(documents.len(), 2);
        documents.iter().for_each(|document| check_fields(document, ""));
        let [deployment, reached] = &documents[..] else { unreachable!() };
        let spec = &deployment["spec"];
        assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]);
        assert_eq!(reached["spec"]["selector"], spec["selector"]["matchLabels"]);
        let pod = &spec["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], 2);
        assert_eq!(reached["spec"]["ports"][0]["targetPort"], container["ports"][0]["name"]);
        let names = |list: &Value| -> Vec<String> {
            let mut names: Vec<_> = list.as_array().unwrap().iter().map(|v| v["name"].to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&pod["volumes"]), names(&container["volumeMounts"]));
        assert_eq!(container["args"], json!(service.arguments()));
    }
}

#[test]
fn requests_ask_for_the_adapter() {
    let asked = |text: &str| -> Value {
        let begin = text.find('{').unwrap();
        serde_json::from_str(&text[begin..=text.rfind('}').unwrap()]).unwrap()
    };
    let script = curl(&service(), "Who are you?");
    // The first brace is the shell's, of the default address.
    let body = asked(script.split("-d '").nth(1).unwrap());
    assert_eq!(body["model"], "ferro");
    assert_eq!(body["chat_template_kwargs"], json!({"enable_thinking": false}));
    let folder = std::env::temp_dir().join(format!("ferrotune-request-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let quoted = "it's \"quoted\" \\ \n ü";
    std::fs::write(folder.join("r.sh"), curl(&service(), quoted)).unwrap();
    assert!(Command::new("sh").arg("-n").arg(folder.join("r.sh")).status().unwrap().success());
    let text = python(&service(), quoted);
    let line = text.lines().find_map(|line| line.strip_prefix("body = json.loads(")).unwrap();
    let inner: String = serde_json::from_str(line.strip_suffix(')').unwrap()).unwrap();
    let body: Value = serde_json::from_str(&inner).unwrap();
    assert_eq!((&body["model"], body["messages"][0]["content"].as_str()), (&json!("ferro"), Some(quoted)));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn names_are_made_fit_or_refused() {
    assert_eq!(model_name("saves/My Run_2").unwrap(), "saves-my-run-2");
    assert_eq!(model_name("quickstart").unwrap(), "quickstart");
    assert!(model_name("...").is_err() && model_name(&"a".repeat(41)).is_err());
}
