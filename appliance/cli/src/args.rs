//! What may be typed: every command and flag, once, with the words that `--help` shows.

use appliance_config::{duration_ms, size_bytes};
use appliance_fleet::{Address, BoxName, By};
use appliance_price::Owner;
use appliance_sim::Synthetic;
use appliance_types::{FunctionName, KeyName, ModelDigest, ProjectName, RequestId};
use clap::{Args as ArgGroup, Parser, Subcommand, ValueEnum, value_parser};
use clap_complete::Shell;
use firmware_slots::Version;
use images_builder::qemu::DiskKind;
use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf};

/// Operate an Ember inference appliance.
#[derive(Debug, Parser)]
#[command(name = "ember", version, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which server, and who asks. Without any of these the environment decides, then `./ember-data`.
#[derive(Clone, Debug, Default, ArgGroup)]
#[command(next_help_heading = "Server")]
pub(crate) struct TargetArgs {
    /// Data folder of a server on this machine: its address, admin key and CA are read from there [env: EMBER_DATA]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Address of a server, as https://HOST:PORT [env: EMBER_SERVER]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// File that holds the API key [env: EMBER_KEY, the key itself or a file]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Certificates of the CA that signed the server's, in PEM [env: EMBER_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Deploy a function from its manifest; returns when it can be called
    Deploy(Deploy),
    /// List functions
    Ls(Listing),
    /// Show one function
    Show(Show),
    /// Remove a function
    Rm {
        /// The function
        function: FunctionName,
    },
    /// The store of models
    #[command(subcommand)]
    Model(Model),
    /// Ask a function and stream its answer
    Run(Run),
    /// List instances, and functions that are parked
    Ps(Listing),
    /// Watch what the box does, in a terminal: q quits, p pauses, s sorts, / filters
    Top(Top),
    /// Start an instance of a function now
    Wake {
        /// The function
        function: FunctionName,
    },
    /// Stop a function's instances and hold its snapshot in memory
    Park {
        /// The function
        function: FunctionName,
    },
    /// Stop a function's instances and hold nothing of it in memory
    Stop {
        /// The function
        function: FunctionName,
    },
    /// Have load balancers send this box nothing new; who calls is still answered
    Drain(Drain),
    /// Have load balancers send this box requests again
    Resume,
    /// What functions wake from
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// API keys
    #[command(subcommand)]
    Key(Key),
    /// What keys, projects and functions may spend
    #[command(subcommand)]
    Budget(Budget),
    /// What was used and what it cost
    Usage(Usage),
    /// What tokens cost, what functions need, and whether to keep an instance
    #[command(subcommand)]
    Report(Report),
    /// Replay a trace of requests under scaling policies, the server's own and others; asks no server
    Sim(Box<Sim>),
    /// The bootable image
    #[command(subcommand)]
    Image(Image),
    /// Write an image to a disk, and prove that it is there; without arguments, list the disks
    Flash(Flash),
    /// Updates of an appliance: two slots, of which one runs
    #[command(subcommand)]
    Update(Update),
    /// Many boxes: what they have used and how they are, in one database
    Fleet(FleetArgs),
    /// Check this machine and the server; says how to fix what is missing
    Doctor(Listing),
    /// Write one file for whoever helps: what this machine and its server are, without keys, prompts or names
    Support(Support),
    /// Print completions, for a shell to read at its start
    Completions {
        /// Whose
        shell: Shell,
    },
    /// Write manual pages, one for each command
    Man {
        /// The folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Top {
    /// Print one frame as text
    #[arg(long)]
    pub(crate) once: bool,
    /// Between two looks, 500ms at least
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    pub(crate) interval: u64,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Drain {
    /// Return when no request runs or waits any more; fail after this time
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub(crate) wait: Option<u64>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Support {
    /// The file
    #[arg(long, value_name = "FILE", default_value = "ember-support.json")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Update {
    /// Send a bundle into the slot that does not run; the next start of the machine tries it
    Apply {
        /// The bundle, of `ember image bundle`
        bundle: PathBuf,
        #[command(flatten)]
        listing: Listing,
    },
    /// Show the slots, in the order in which they are tried
    Status(Listing),
    /// Have the other slot started from the next start of the machine on
    Rollback(Listing),
}

#[derive(Debug, ArgGroup)]
pub(crate) struct FleetArgs {
    /// The fleet's folder: its boxes, CA and database [env: EMBER_FLEET] [default: ./ember-fleet]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) fleet: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Fleet,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Fleet {
    /// Make what a box is given to be one of the fleet's; again for a new certificate
    Enrol {
        /// What the box is called
        name: BoxName,
        /// Another name or address that it is reached by, as Prometheus does; repeat for several
        #[arg(long, value_name = "HOST", value_parser = appliance_fleet::host)]
        host: Vec<String>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Add a box, or change its address; --ca is the CA of its certificate, the fleet's without
    Add {
        /// What the box is called, as it calls itself and its certificate says
        name: BoxName,
        /// Its telemetry listener, as https://HOST:PORT
        #[arg(value_name = "URL")]
        address: Address,
        /// The certificate to show to it; the fleet's without
        #[arg(long, value_name = "FILE", requires = "key")]
        cert: Option<PathBuf>,
        /// The key of that certificate
        #[arg(long, value_name = "FILE", requires = "cert")]
        key: Option<PathBuf>,
    },
    /// Remove a box; what was pulled of it stays
    Rm {
        /// The box
        name: BoxName,
    },
    /// List boxes
    Ls {
        /// The database [default: fleet.db in the fleet's folder]
        #[arg(long, value_name = "FILE")]
        db: Option<PathBuf>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Take in what boxes have metered since the last pull
    Pull(FleetPull),
    /// What was used and what it cost, over all boxes
    Usage {
        /// One row for each of these
        #[arg(long, value_name = "WHAT", value_enum, default_value = "box")]
        by: FleetBy,
        /// Requests that ended in this time until now, as in 24h; all that was pulled without it
        #[arg(long, value_name = "TIME", value_parser = duration_ms)]
        since: Option<u64>,
        /// The database [default: fleet.db in the fleet's folder]
        #[arg(long, value_name = "FILE")]
        db: Option<PathBuf>,
        #[command(flatten)]
        listing: Listing,
    },
    /// How boxes are: when last seen, version, clock, disk, and what is wrong with them
    Report {
        /// The database [default: fleet.db in the fleet's folder]
        #[arg(long, value_name = "FILE")]
        db: Option<PathBuf>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Write what was charged to a file, for other programs
    Export(FleetExport),
    /// Take what a flagged box has now for a new ledger, once you know why; what was pulled stays
    Accept {
        /// The box
        name: BoxName,
        /// The database [default: fleet.db in the fleet's folder]
        #[arg(long, value_name = "FILE")]
        db: Option<PathBuf>,
    },
    /// Print the boxes as Prometheus' HTTP service discovery has them, or serve that
    Sd {
        /// Serve it here, over HTTP, until interrupted
        #[arg(long, value_name = "ADDR:PORT")]
        listen: Option<SocketAddr>,
    },
}

#[derive(Debug, ArgGroup)]
pub(crate) struct FleetPull {
    /// These boxes only
    #[arg(value_name = "NAME")]
    pub(crate) boxes: Vec<BoxName>,
    /// The database [default: fleet.db in the fleet's folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) db: Option<PathBuf>,
    /// Boxes at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=512))]
    pub(crate) jobs: u32,
    /// How long one box has; what it has told until then is kept
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration_ms)]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct FleetExport {
    /// How
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// Where; what is there is replaced
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The billing account that it is charged to, as the file names it
    #[arg(long, value_name = "NAME", default_value = "ember")]
    pub(crate) account: String,
    /// The database [default: fleet.db in the fleet's folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) db: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) span: Span,
}

/// What a fleet's usage is summed by.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FleetBy {
    /// The box
    Box,
    /// The key that pays
    Key,
    /// The project of that key
    Project,
    /// The function
    Function,
    /// The hour in which it ended
    Hour,
}

impl From<FleetBy> for By {
    fn from(by: FleetBy) -> Self {
        match by {
            FleetBy::Box => By::Box,
            FleetBy::Key => By::Key,
            FleetBy::Project => By::Project,
            FleetBy::Function => By::Function,
            FleetBy::Hour => By::Hour,
        }
    }
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Flash {
    /// The image, plain or zstd; - is stdin
    pub(crate) image: Option<PathBuf>,
    /// The disk, as /dev/sdb, or a file that stands for one
    pub(crate) device: Option<PathBuf>,
    /// What the box is told: put onto its boot partition
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The image's block map, unless it lies beside it as IMAGE.bmap
    #[arg(long, value_name = "FILE")]
    pub(crate) bmap: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Also a disk that is mounted, or that this system runs from; such are also listed
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not read back what was written
    #[arg(long)]
    pub(crate) no_verify: bool,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Build an image and its block map; needs no root
    Build {
        /// What goes into it
        #[arg(long, value_name = "FILE", default_value = "images/appliance.toml")]
        recipe: PathBuf,
        /// Where it goes; its block map goes beside it
        #[arg(long, value_name = "FILE", default_value = "target/image/ember.img")]
        out: PathBuf,
        /// Where Debian's packages are unpacked, and found again
        #[arg(long, value_name = "DIR", default_value = "target/image/packages")]
        cache: PathBuf,
        /// Sign boot loader and slot for Secure Boot, with a key and its certificate, both PEM
        #[arg(long, num_args = 2, value_names = ["KEY", "CRT"])]
        sign: Option<Vec<PathBuf>>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Make an update bundle of an image's slot, signed
    Bundle {
        /// The image
        image: PathBuf,
        /// The secret key, of `ember image key` or `minisign -G -W`
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The least version that it can be installed from
        #[arg(long, value_name = "VERSION", default_value = "0.0.0")]
        minimum: Version,
        /// Where it goes
        #[arg(long, value_name = "FILE", default_value = "target/image/ember.bundle")]
        out: PathBuf,
        #[command(flatten)]
        listing: Listing,
    },
    /// Make a pair of keys for update bundles, FILE and FILE.pub, in minisign's form
    Key {
        /// The secret key
        file: PathBuf,
    },
    /// Run an image in QEMU, with its console here; the image itself stays as it is
    Boot {
        /// The image
        file: PathBuf,
        /// Port of this machine that reaches the image's
        #[arg(long, value_name = "PORT", default_value_t = 8443)]
        port: u16,
        /// Memory
        #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = size_bytes)]
        memory: u64,
        /// Processors
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
        cpus: u32,
        /// What the disk is: virtio, nvme, ahci or usb
        #[arg(long, value_name = "KIND", default_value = "virtio")]
        disk: DiskKind,
        /// What the network interface is, as QEMU calls it: virtio-net-pci, e1000e, igb, vmxnet3, rtl8139
        #[arg(long, value_name = "MODEL", default_value = "virtio-net-pci")]
        nic: String,
        /// Write to the image, as a machine would to its disk
        #[arg(long)]
        write: bool,
        /// By KVM: much faster, where this machine has it
        #[arg(long)]
        kvm: bool,
    },
    /// Show an image's partitions, versions and sizes
    Inspect {
        /// The image
        file: PathBuf,
        #[command(flatten)]
        listing: Listing,
    },
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, ArgGroup)]
pub(crate) struct Listing {
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Deploy {
    /// The manifest; a model path in it is taken from the manifest's folder
    #[arg(value_name = "FILE.toml")]
    pub(crate) manifest: PathBuf,
    /// Only try the model; the first wake loads it again
    #[arg(long)]
    pub(crate) no_snapshot: bool,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Show {
    /// The function
    pub(crate) function: FunctionName,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// Put a GGUF file into the store; from a URL it is fetched, and goes on where a connection breaks
    Add {
        /// The file, or its URL: https, or http with --sha256
        #[arg(value_name = "FILE|URL")]
        from: PathBuf,
        /// Refuse the file unless it has this SHA-256
        #[arg(long, value_name = "HEX")]
        sha256: Option<ModelDigest>,
        #[command(flatten)]
        listing: Listing,
    },
    /// List models
    Ls(Listing),
    /// Remove a model that no function uses
    Rm {
        /// The model's SHA-256, as `model ls` shows it
        sha256: ModelDigest,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// List snapshots
    Ls(Listing),
    /// Take a function's snapshot, in place of what there is
    Create {
        /// The function
        function: FunctionName,
        #[command(flatten)]
        listing: Listing,
    },
    /// Read a function's snapshot to its end and check that it is authentic and fits
    Verify {
        /// The function
        function: FunctionName,
        #[command(flatten)]
        listing: Listing,
    },
    /// Remove a function's snapshot
    Rm {
        /// The function
        function: FunctionName,
    },
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Run {
    /// The function
    pub(crate) function: FunctionName,
    /// What to ask
    pub(crate) prompt: String,
    /// System prompt instead of the function's own
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Send the prompt as it is, without the chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// 0 takes the likeliest token every time; higher varies more
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Same seed, same answer
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u32>,
    /// Print times, rates and the bill on stderr
    #[arg(long)]
    pub(crate) verbose: bool,
}

#[derive(Debug, ArgGroup)]
pub(crate) struct Sim {
    /// The trace: `time_s,function,prompt_tokens,output_tokens` or `time_s,function,service_ms`, with or without `,key`, or
    /// one of Azure's LLM and Functions traces; without it the synthetic ones of scaling
    #[arg(value_name = "TRACE.csv", conflicts_with = "synthetic")]
    pub(crate) trace: Option<PathBuf>,
    /// One synthetic trace: poisson, bursty, diurnal, timer, or flood, in which keys take turns
    #[arg(long, value_name = "KIND")]
    pub(crate) synthetic: Option<Synthetic>,
    /// Draw wasted memory against the slowest first tokens; of one trace
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Replay the first N functions of the trace
    #[arg(long, value_name = "N")]
    pub(crate) functions: Option<u32>,
    /// Inference cores of the server [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) cores: Option<u32>,
    /// Memory of all functions [default: 64GiB]
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    pub(crate) memory: Option<u64>,
    /// The manifest's `cpus` [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) cpus: Option<u32>,
    /// The manifest's `concurrency` [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) concurrency: Option<u32>,
    /// The manifest's `max` [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) max: Option<u32>,
    /// What a wake from memory takes [default: 5ms, as measured]
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub(crate) parked_wake: Option<u64>,
    /// What a wake from disk takes [default: 115ms, as measured]
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub(crate) stored_wake: Option<u64>,
    /// A model's weights, in memory while an instance is up [default: 94MiB, as measured]
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    pub(crate) weights: Option<u64>,
    /// A function's image, in memory while it is up or parked [default: 20MiB, as measured]
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    pub(crate) image: Option<u64>,
    /// Tokens of a prompt that are read in a second [default: 690, as measured]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prefill_rate: Option<u32>,
    /// Tokens that are written in a second [default: 120, as measured]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) decode_rate: Option<u32>,
    /// Work of a request of which the trace tells none [default: 500ms]
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub(crate) service: Option<u64>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key and print it: this once only
    Create {
        /// What the key is called in lists and bills
        #[arg(long)]
        name: KeyName,
        /// It reads metrics (GET /metrics) and what it is itself, and nothing else
        #[arg(long, conflicts_with_all = ["functions", "budget", "project"])]
        telemetry: bool,
        /// Functions that it may call; all without this
        #[arg(long, value_name = "A,B", value_delimiter = ',')]
        functions: Option<Vec<FunctionName>>,
        #[command(flatten)]
        rates: Rates,
        /// What it may spend in a day or a month of UTC, as in 5.00/month
        #[arg(long, value_name = "AMOUNT/PERIOD")]
        budget: Option<appliance_price::Budget>,
        /// Warn in the server's log when it has spent this much of its budget
        #[arg(long, value_name = "AMOUNT", requires = "budget", value_parser = amount)]
        budget_soft: Option<u64>,
        /// The project that it belongs to, whose budget it shares
        #[arg(long)]
        project: Option<ProjectName>,
        #[command(flatten)]
        listing: Listing,
    },
    /// List keys
    Ls(Listing),
    /// Make a key stop working at once
    Revoke {
        /// The key's name
        name: KeyName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Budget {
    /// List budgets, and what is spent of them
    Ls(Listing),
    /// Set a budget, in place of what there is
    Set {
        /// Whose: key:NAME, project:NAME or function:NAME
        of: Owner,
        /// What it may spend in a day or a month of UTC, as in 5.00/month
        #[arg(value_name = "AMOUNT/PERIOD")]
        budget: appliance_price::Budget,
        /// Warn in the server's log when this much is spent
        #[arg(long, value_name = "AMOUNT", value_parser = amount)]
        soft: Option<u64>,
    },
    /// Remove a budget that was set
    Rm {
        /// Whose: key:NAME, project:NAME or function:NAME
        of: Owner,
    },
}

#[derive(Debug, ArgGroup)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Usage {
    #[command(subcommand)]
    pub(crate) command: Option<UsageCommand>,
    /// One row for each of these
    #[arg(long, value_name = "WHAT", default_value = "function", value_parser = ["function", "key", "project", "tier", "hour"])]
    pub(crate) by: String,
    /// Requests that ended in this time until now, as in 1h; all that the ledger keeps without it
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub(crate) since: Option<u64>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UsageCommand {
    /// Show how the amount of a request came to be, line by line
    Explain {
        /// The request, as its receipt and `x-request-id` name it
        #[arg(value_name = "REQUEST-ID", value_parser = request_id)]
        request: RequestId,
        #[command(flatten)]
        listing: Listing,
    },
    /// Show what the box's processes took since the server began, whose it was, and the machine's own count of it
    Machine(Listing),
    /// Write what was charged to a file, for other programs
    Export {
        /// How
        #[arg(long, value_enum)]
        format: ExportFormat,
        /// Where; what is there is replaced
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The billing account that it is charged to, as the file names it
        #[arg(long, value_name = "NAME", default_value = "ember")]
        account: String,
        #[command(flatten)]
        span: Span,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Report {
    /// Cost per token, by function and key
    Cost(Span),
    /// Memory, cores and concurrency by measured peaks, and what that saves
    Rightsize(Span),
    /// Paying as used against a provisioned instance, at the measured arrivals, and the rate at which that turns
    Breakeven {
        #[command(flatten)]
        span: Span,
        /// Price of a GiB that is kept for a second [default: a quarter of what one that is used costs, as in Lambda's list]
        #[arg(long, value_name = "AMOUNT", value_parser = amount)]
        kept: Option<u64>,
        /// Price of a GiB that is kept, for a second in which it is used, beside that [default: seven twelfths of it]
        #[arg(long, value_name = "AMOUNT", value_parser = amount)]
        used: Option<u64>,
    },
}

/// Which requests are meant.
#[derive(Clone, Copy, Debug, ArgGroup)]
pub(crate) struct Span {
    /// Requests that ended in this time until now, as in 24h; all that the ledger keeps without it
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub(crate) since: Option<u64>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

/// How an export is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ExportFormat {
    /// FOCUS 1.0, as CSV: what was charged, by hour, key, function and line of the bill
    Focus,
}

fn amount(text: &str) -> Result<u64, String> {
    appliance_price::amount_nanos(text).ok_or_else(|| "not an amount; write decimals, as in 4.50".to_owned())
}

fn interval(text: &str) -> Result<u64, String> {
    let ms = duration_ms(text)?;
    if (500..=3_600_000).contains(&ms) { Ok(ms) } else { Err(format!("{text} is outside 500ms to 1h")) }
}

fn request_id(text: &str) -> Result<RequestId, &'static str> {
    RequestId::try_from(text.to_owned())
}

/// How much a key may use; all there is without a limit.
#[derive(Clone, Copy, Debug, ArgGroup, Serialize)]
pub(crate) struct Rates {
    /// Requests a minute
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) rpm: Option<u32>,
    /// Tokens a minute, of prompts and answers
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) tpm: Option<u32>,
    /// Requests at once, waiting ones included
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) concurrency: Option<u32>,
    /// Turns for each turn of a key of weight 1, while both wait; up to 1000
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1000))]
    pub(crate) weight: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_sound() {
        Args::command().debug_assert();
    }
}
