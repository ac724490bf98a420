//! Manifests that are read, manifests that are refused, and that writing loses nothing.

use super::*;
use appliance_types::Weekday;
use proptest::prelude::*;

const MINIMAL: &str = "name = \"a\"\nmodel = \"m.gguf\"\n";
const FULL: &str = r#"
name = "assistant"                # the API's `model`
model = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
task = "chat"
[limits]
memory = "1GiB"
cpus = 2
context = 2048
output_tokens = 1024
timeout = "900s"
request_bytes = "1MiB"
[scale]
min = 0
max = 1
concurrency = 4
keep_warm = "60s"
park = "15m"
queue = 64
queue_timeout = "30s"
[prompt]
system = "You are a helpful assistant."
"#;

#[test]
fn the_documented_manifest_states_the_defaults() {
    let full = Manifest::parse(FULL).unwrap();
    let minimal = Manifest::parse(MINIMAL).unwrap();
    let (keep_warm_ms, park_ms) = (full.scale.keep_warm_ms, full.scale.park_ms);
    assert_eq!((keep_warm_ms, park_ms), (Some(KEEP_WARM_MS_MAX), Some(PARK_MS_MAX)), "what it may be by itself");
    assert_eq!((minimal.scale.keep_warm_ms, minimal.scale.park_ms), (None, None));
    assert_eq!(full.scale, Scale { keep_warm_ms, park_ms, ..Scale::default() });
    assert_eq!((&full.limits, full.task), (&minimal.limits, minimal.task));
    assert_eq!((full.limits, minimal.scale), (Limits::default(), Scale::default()));
    assert_eq!(full.prompt.system.as_deref(), Some("You are a helpful assistant."));
    assert_eq!(minimal.prompt.system, None);
}

#[test]
fn json_shows_units_in_names() {
    let json = serde_json::to_value(Manifest::parse(FULL).unwrap()).unwrap();
    assert_eq!(json["limits"]["memory_bytes"], 1 << 30);
    assert_eq!(json["scale"]["park_ms"], 900_000);
    assert_eq!(json["model"], "models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert_eq!(json["task"], "chat");
}

#[test]
fn a_model_is_a_path_or_a_digest() {
    let digest = format!("sha256:{}", "0f".repeat(32));
    let model = |model: &str| Manifest::parse(&format!("name = \"a\"\nmodel = \"{model}\"")).map(|m| m.model);
    assert_eq!(model(&digest).unwrap().to_string(), digest);
    assert_eq!(model("a/b.gguf"), Ok(ModelReference::Path("a/b.gguf".to_owned())));
    assert_eq!(model("sha256:12").unwrap_err().column, 9);
    assert!(model("").is_err() && model("a\\u0000b").is_err());
}

#[test]
fn errors_point_at_their_cause() {
    let check = |text: &str, expected: &str| {
        assert_eq!(Manifest::parse(text).unwrap_err().to_string(), expected, "{text}");
    };
    let with = |more: &str| format!("{MINIMAL}{more}");
    check("", "line 1, column 1: missing key `name`");
    check("name = \"a\"", "line 1, column 1: missing key `model`");
    check("name = \"a\"\nmodle = \"m\"", "line 2, column 1: unknown key `modle`; did you mean `model`?");
    check(
        "name = \"A\"\nmodel = \"m\"",
        "line 1, column 8: `name`: `A` is not a name: use 1 to 63 of a-z, 0-9 and `-`, and begin with a letter or digit",
    );
    check(&with("[limits]\n  contxt = 1"), "line 4, column 3: unknown key `contxt`; did you mean `context`?");
    check(&with("limits.contxt = 1"), "line 3, column 8: unknown key `contxt`; did you mean `context`?");
    check(&with("memory = \"1GiB\""), "line 3, column 1: unknown key `memory`; it belongs in `[limits]`");
    check(
        &with("[limits]\ntask = \"chat\""),
        "line 4, column 1: unknown key `task`; it belongs at the top, before the first `[section]`",
    );
    check(&with("[prompt]\nuser = \"\""), "line 4, column 1: unknown key `user`; known are `system`");
    check(&with("limits = 1"), "line 3, column 10: expected a table `[limits]`, got a whole number");
    check(
        &with("task = \"talk\""),
        "line 3, column 8: `task`: `talk` is not a task: use chat, completion or embedding",
    );
    check(&with("limits.context = 15"), "line 3, column 18: `context`: 15 is outside 16 to 1048576");
    check(&with("limits.context = -1"), "line 3, column 18: `context`: -1 is outside 16 to 1048576");
    check(&with("limits.context = 2.5"), "line 3, column 18: `context`: expected a whole number, got a fraction");
    check(&with("limits.cpus = 0"), "line 3, column 15: `cpus`: 0 is outside 1 to 1024");
    check(&with("limits.memory = 1"), "line 3, column 17: `memory`: 1 is outside 1MiB to 4096GiB");
    check(
        &with("limits.memory = \"1GB\""),
        "line 3, column 17: `memory`: `1GB` is not a size: write a whole number and KiB, MiB or GiB",
    );
    check(&with("limits.timeout = \"0s\""), "line 3, column 18: `timeout`: 0ms is outside 1ms to 24h");
    check(
        &with("limits.timeout = 30"),
        "line 3, column 18: `timeout`: expected a duration such as \"30s\", got a whole number",
    );
    check(&with("scale.concurrency = 256"), "line 3, column 21: `concurrency`: 256 is outside 1 to 255");
    let window = |keys: &str| with(&format!("scale.max = 2\n[[scale.provisioned]]\n{keys}"));
    check(&window("to = \"18:00\"\nmin = 1"), "line 4, column 1: missing key `from`");
    let hours = "from = \"08:00\"\nto = \"18:00\"\n";
    check(&window(&format!("{hours}min = 3")), "line 7, column 7: `min`: 3 is above the function's `max`, which is 2");
    check(&window(&format!("{hours}min = 0")), "line 7, column 7: `min`: 0 is outside 1 to 64");
    check(
        &window("from = \"8:00\""),
        "line 5, column 8: `from`: `8:00` is not a time of day: write HH:MM, 00:00 to 24:00, in UTC",
    );
    check(
        &window(&format!("{hours}min = 1\ndays = [\"mon\", \"mo\"]")),
        "line 8, column 8: `days`: `mo` is not a day: use mon, tue, wed, thu, fri, sat or sun",
    );
    check(&window(&format!("{hours}min = 1\ndays = []")), "line 8, column 8: `days`: none; leave it out for every day");
    check(
        &window("from = \"08:00\"\nto = \"08:00\"\nmin = 1"),
        "line 6, column 6: `to`: the same as `from`; a whole day is \"00:00\" to \"24:00\"",
    );
    check(&window("form = \"08:00\""), "line 5, column 1: unknown key `form`; did you mean `from`?");
    check(
        &with("scale.provisioned = 1"),
        "line 3, column 21: expected tables `[[scale.provisioned]]`, got a whole number",
    );
    let many = "[[scale.provisioned]]\nfrom = \"08:00\"\nto = \"18:00\"\nmin = 1\n".repeat(PROVISIONED_MAX + 1);
    check(&with(&many), "line 131, column 1: `[[scale.provisioned]]`: 33 of them; the most is 32");
    check(&with("scale.min = 2"), "line 3, column 13: `min`: 2 is above `max`, which is 1");
    check(
        &with("task = \"embedding\"\nprompt.system = \"x\""),
        "line 4, column 17: `system`: task `embedding` has no messages to put it before",
    );
    let long = "x".repeat(SYSTEM_BYTES_MAX + 1);
    check(
        &with(&format!("prompt.system = \"{long}\"")),
        "line 3, column 17: `system`: 65537 bytes; the longest system prompt is 65536",
    );
    let syntax = Manifest::parse("name = \"a\"\nmodel = m").unwrap_err();
    assert_eq!((syntax.line, syntax.column), (2, 9), "{syntax}");
    let twice = Manifest::parse("name = \"a\"\nname = \"b\"").unwrap_err();
    assert_eq!((twice.line, twice.column), (2, 1), "{twice}");
}

#[test]
fn limits_hold_at_both_ends() {
    let is_read = |key: &str, value: &str| Manifest::parse(&format!("{MINIMAL}{key} = {value}"));
    // A key, what is refused at 0, at 1 and below its least, the least, the most, and what is above it.
    let ends = [
        ("limits.context", &["0", "1", "15"][..], "16", "1048576", "1048577"),
        ("limits.output_tokens", &["0"], "1", "1048576", "1048577"),
        ("limits.timeout", &["\"0ms\""], "\"1ms\"", "\"24h\"", "\"86400001ms\""),
        ("limits.request_bytes", &["0", "1", "1023"], "1024", "\"16MiB\"", "16777217"),
        ("limits.cpus", &["0"], "1", "1024", "1025"),
        ("limits.memory", &["0", "1", "1048575"], "\"1MiB\"", "\"4096GiB\"", "4398046511105"),
        ("scale.concurrency", &["0"], "1", "255", "256"),
        ("scale.queue", &[], "0", "65536", "65537"),
        ("scale.queue_timeout", &["\"0ms\""], "\"1ms\"", "\"24h\"", "\"86400001ms\""),
        ("scale.max", &["0"], "1", "64", "65"),
    ];
    for (key, refused, least, most, above) in ends {
        for value in [least, most] {
            is_read(key, value).unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
        }
        let name = key.rsplit('.').next().unwrap();
        for value in refused.iter().chain([&above]) {
            let error = is_read(key, value).unwrap_err();
            let named = error.to_string().contains(&format!("`{name}`"));
            assert!(named && error.to_string().contains("is outside"), "{key} = {value}: {error}");
        }
    }
}

fn reference() -> impl Strategy<Value = ModelReference> {
    prop_oneof![
        "[^\0]{1,40}".prop_map(|path| path.parse().unwrap_or(ModelReference::Path("m".to_owned()))),
        any::<[u8; 32]>().prop_map(|bytes| ModelReference::Digest(ModelDigest::from_bytes(bytes))),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    (1u64 << 20..=1 << 42, 1u32..=1024, 16u32..=1 << 20, 1u32..=1 << 20, 1u64..=86_400_000, 1u64 << 10..=16 << 20)
        .prop_map(|(memory_bytes, cpus, context_tokens, output_tokens, timeout_ms, request_bytes)| Limits {
            memory_bytes,
            cpus,
            context_tokens,
            output_tokens,
            timeout_ms,
            request_bytes,
        })
}

fn windows() -> impl Strategy<Value = Vec<Provisioned>> {
    let window = (0u16..1440, 0u16..=1440, 1usize..7, 1u32..8).prop_filter("two times", |(from, to, ..)| from != to);
    let time = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60).parse().unwrap();
    let provisioned = window.prop_map(move |(from, to, days, min)| Provisioned {
        from: time(from),
        to: time(to),
        days: Weekday::ALL[..days].to_vec(),
        min,
    });
    prop::collection::vec(provisioned, 0..3)
}

fn scale() -> impl Strategy<Value = Scale> {
    let idle = || prop::option::of(0u64..=1 << 34);
    (0u32..=8, 8u32..=64, 1u32..=255, idle(), idle(), 0u32..=1 << 16, 1u64..=86_400_000, windows()).prop_map(
        |(min, max, concurrency, keep_warm_ms, park_ms, queue, queue_timeout_ms, provisioned)| Scale {
            min,
            max,
            concurrency,
            keep_warm_ms,
            park_ms,
            queue,
            queue_timeout_ms,
            provisioned,
        },
    )
}

proptest! {
    #[test]
    fn reads_what_it_writes(
        name in "[a-z0-9][a-z0-9-]{0,62}",
        model in reference(),
        limits in limits(),
        scale in scale(),
        system in prop::option::of(any::<String>()),
    ) {
        let prompt = Prompt { system };
        let manifest = Manifest { name: name.parse().unwrap(), model, task: Task::Chat, limits, scale, prompt };
        prop_assert_eq!(Manifest::parse(&manifest.to_toml()), Ok(manifest));
    }

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        let _ = Manifest::parse(&text);
    }

    #[test]
    fn any_damage_is_read_or_refused(at in 0..FULL.len(), damage in "\\PC{0,6}") {
        let mut text = FULL.to_owned();
        text.insert_str(at, &damage);
        if let Err(error) = Manifest::parse(&text) {
            prop_assert!(error.line <= text.lines().count() + 1, "{}", error);
        }
    }
}
