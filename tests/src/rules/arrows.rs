//! Which crate may name which.
//!
//! ```text
//!  types ◀── wire ◀── money ◀── pure ◀── fences ◀── mechanisms ◀── stages ◀── telemetry's ends, simulators ◀── programs
//!                                              an arrow goes down a layer or more, never along or up
//! ```
//!
//! A stage hands a value on and does not know who takes it, hence no arrow between stages. `sandbox/` never names
//! `appliance/`, plain types apart, so that what confines does not hang on what it serves. Each foreign world is named
//! by one crate of ours; whoever else names it is listed in [`WORLDS`] with the reason, and a reason that nobody needs
//! any more is a violation too. A crate's own tests may name any foreign crate, but no more crates of ours than its
//! code may.

use serde_json::Value;

/// The layers, lowest first.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &["appliance-types"]),
    ("wire", &["sandbox-wire", "firmware-slots"]),
    ("money", &["appliance-price"]),
    (
        "pure",
        &[
            "appliance-config",
            "appliance-api",
            "appliance-admit",
            "appliance-report",
            "appliance-scale",
            "appliance-ui",
            "sandbox-snapshot",
            "images-uki",
            "firmware-gpt",
        ],
    ),
    ("fences", &["appliance-runtime", "appliance-meter", "sandbox-kernel", "sandbox-model"]),
    ("mechanisms", &["sandbox-image", "images-builder", "firmware-bundle", "tests-synthetic"]),
    (
        "stages",
        &[
            "appliance-edge",
            "appliance-keys",
            "appliance-pool",
            "appliance-ledger",
            "appliance-telemetry",
            "sandbox-warden",
            "firmware-flash",
            "firmware-init",
        ],
    ),
    ("ends", &["appliance-listener", "appliance-fleet", "appliance-sim"]),
    ("programs", &["appliance-daemon", "appliance-cli", "sandbox-runner", "bench", "tests", "tests-liar"]),
];

/// A foreign world, the one crate that names it, and who else may, for a reason.
pub struct World {
    /// The foreign crates, by the names they begin with.
    pub crates: &'static [&'static str],
    /// The fence round them.
    pub owner: &'static str,
    /// Other crates, each with its reason.
    pub also: &'static [(&'static str, &'static str)],
}

const CLIENT: &str = "speaks HTTPS as a client, and must choose whom to trust";

/// Each foreign world has one owner.
pub const WORLDS: &[World] = &[
    World { crates: &["glommio"], owner: "appliance-runtime", also: &[] },
    World { crates: &["llama-cpp"], owner: "sandbox-model", also: &[] },
    World {
        crates: &["zstd"],
        owner: "sandbox-snapshot",
        also: &[
            ("images-builder", "packs the initramfs for the kernel"),
            ("firmware-flash", "reads images that were packed"),
        ],
    },
    World {
        crates: &["rusqlite"],
        owner: "appliance-ledger",
        also: &[("appliance-fleet", "keeps what it pulled, which is no ledger of its own")],
    },
    World {
        crates: &["hyper"],
        owner: "appliance-edge",
        also: &[("appliance-fleet", CLIENT), ("bench", "is the load, and the peer on tokio")],
    },
    World {
        crates: &["rustls", "futures-rustls", "tokio-rustls"],
        owner: "appliance-edge",
        also: &[
            ("appliance-cli", CLIENT),
            ("appliance-fleet", CLIENT),
            ("tests", CLIENT),
            ("bench", "is the load, and the peer on tokio"),
        ],
    },
    // What the kernel is asked for with `unsafe`, and every layer of the sandbox, is the owner's alone; the others use
    // safe calls of `nix` that std lacks.
    World {
        crates: &["nix", "libc", "landlock"],
        owner: "sandbox-kernel",
        also: &[
            ("firmware-bundle", "syncs the boot partition's file system"),
            ("firmware-flash", "finds the holes of files, makes them, and tells devices by number"),
            ("firmware-init", "mounts, loads modules, reaps, and ends the machine"),
            ("appliance-runtime", "awaits raw descriptors and pins its threads to cores"),
            ("appliance-meter", "makes, seals and maps the rings' memory, and the pipe that is their bell"),
            ("appliance-ledger", "waits for SIGTERM and for the rings' bell, locks its folder and allocates its files"),
            ("sandbox-image", "names the calls that a child runs by number, and seals files in memory"),
            ("sandbox-runner", "reads its socket between two steps without blocking"),
            ("appliance-daemon", "takes signals, locks its folder, gives files to the uids of its children"),
            ("bench", "stops the peers that it started"),
            ("tests", "sends signals to what it started"),
        ],
    },
];

/// Crates on the path of a request, which know nothing of what is counted behind them.
const REQUEST_PATH: &[&str] = &["appliance-edge", "appliance-api", "appliance-admit", "appliance-pool"];
const BEHIND_THE_PATH: &[&str] = &["appliance-ledger", "appliance-telemetry"];

/// A crate of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its folder, from the root.
    pub path: String,
    /// What it names.
    pub dependencies: Vec<Dependency>,
}

/// A crate that one of ours names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The crate.
    pub name: String,
    /// Named by tests only.
    pub dev: bool,
}

/// The crates of ours in what `cargo metadata --no-deps` prints.
pub fn packages(metadata: &str) -> Vec<Package> {
    let metadata: Value = serde_json::from_str(metadata).expect("cargo metadata prints JSON");
    let root = metadata["workspace_root"].as_str().expect("a workspace root");
    metadata["packages"].as_array().expect("packages").iter().map(|package| read_package(package, root)).collect()
}

fn read_package(package: &Value, root: &str) -> Package {
    let manifest = package["manifest_path"].as_str().expect("a manifest path");
    let folder = manifest.strip_suffix("/Cargo.toml").and_then(|folder| folder.strip_prefix(root));
    let dependencies = package["dependencies"].as_array().expect("dependencies");
    Package {
        name: text(&package["name"]),
        path: folder.expect("below the root").trim_start_matches('/').to_owned(),
        dependencies: dependencies
            .iter()
            .map(|d| Dependency { name: text(&d["name"]), dev: d["kind"] == "dev" })
            .collect(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// A package is named like its path.
pub fn names_unlike_paths(packages: &[Package]) -> Vec<String> {
    let unlike = |package: &&Package| package.name != package.path.replace('/', "-");
    packages.iter().filter(unlike).map(|p| format!("{}: the package is called {}", p.path, p.name)).collect()
}

/// Arrows between our crates go down the layers.
pub fn backward_arrows(packages: &[Package]) -> Vec<String> {
    let mut violations = Vec::new();
    for package in packages {
        let Some(from) = layer(&package.name) else {
            violations.push(format!("{}: in no layer", package.name));
            continue;
        };
        for to in package.dependencies.iter().filter(|d| packages.iter().any(|p| p.name == d.name)) {
            if layer(&to.name).is_none_or(|layer| layer >= from) {
                violations.push(format!("{} ({}) names {}", package.name, LAYERS[from].0, to.name));
            }
        }
    }
    violations
}

fn layer(package: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, packages)| packages.contains(&package))
}

/// What confines names nothing of what it serves, types apart.
pub fn sandbox_names_appliance(packages: &[Package]) -> Vec<String> {
    let appliance = |name: &str| name.starts_with("appliance-") && name != "appliance-types";
    arrows(packages, |from, to| from.starts_with("sandbox-") && appliance(to))
}

/// The request path names nothing that counts behind it.
pub fn request_path_looks_back(packages: &[Package]) -> Vec<String> {
    arrows(packages, |from, to| REQUEST_PATH.contains(&from) && BEHIND_THE_PATH.contains(&to))
}

fn arrows(packages: &[Package], forbidden: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let edges = packages.iter().flat_map(|from| from.dependencies.iter().map(move |to| (&from.name, &to.name)));
    edges.filter(|(from, to)| forbidden(from, to)).map(|(from, to)| format!("{from} names {to}")).collect()
}

/// Each foreign world is named by its owner, by those with a reason, and by nobody else.
pub fn strangers_in_worlds(packages: &[Package], worlds: &[World]) -> Vec<String> {
    worlds.iter().flat_map(|world| strangers(packages, world)).collect()
}

fn strangers(packages: &[Package], world: &World) -> Vec<String> {
    let names = |package: &Package| {
        let foreign = |d: &&Dependency| !d.dev && world.crates.iter().any(|known| belongs(&d.name, known));
        package.dependencies.iter().find(foreign).map(|d| d.name.clone())
    };
    let allowed = |name: &str| name == world.owner || world.also.iter().any(|(also, _)| *also == name);
    let mut violations = Vec::new();
    for package in packages {
        match (names(package), allowed(&package.name)) {
            (Some(foreign), false) => {
                violations.push(format!("{} names {foreign}; only {} may", package.name, world.owner))
            }
            (None, true) => {
                violations.push(format!("{} no longer names {}: take it off the list", package.name, world.crates[0]))
            }
            (Some(_), true) | (None, false) => {}
        }
    }
    violations
}

fn belongs(name: &str, known: &str) -> bool {
    name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
