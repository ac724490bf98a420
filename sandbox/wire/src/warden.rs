//! Server ↔ warden: one packet a message on a SOCK_SEQPACKET socket pair.
//!
//! A [`Request`] but [`Call::Cores`] is answered by one [`Message::Reply`] with its id; replies may come in any order. A reply to
//! [`Call::Wake`] carries one descriptor, the server's end of the instance's socket; a [`Call::ModelAdd`] carries one
//! to the warden, from which it reads the file, and so does a [`Call::UpdateApply`]. [`Message::Exited`] comes by itself, once for each instance that was
//! awake. The warden trusts nothing here beyond what a holder of the admin key may do anyway: it clamps limits by its
//! own and runs only models that are in its store.

use crate::runner::ModelInfo;
use appliance_types::{FunctionName, ModelDigest, Task, Tier};
use serde::{Deserialize, Serialize};

/// Longest packet, either way.
pub const PACKET_BYTES_MAX: usize = 128 << 10;
/// Longest system prompt, so that a [`RunnerSpec`] fits a packet.
pub const SYSTEM_BYTES_MAX: usize = 64 << 10;

/// An instance's number; never used again while the warden lives.
pub type InstanceId = u64;

/// One call to the warden.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the server; comes back in the reply.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// What the warden can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// Start an instance, from the highest tier its function is found in; answered once it can be asked. One that is
    /// found cold leaves a snapshot behind.
    Wake(RunnerSpec),
    /// End an instance and leave nothing of it.
    Stop {
        /// The instance.
        instance: InstanceId,
    },
    /// Keep an instance on the cores that it has a lease of. Answered by nobody: an instance that is gone needs none.
    Cores {
        /// The instance.
        instance: InstanceId,
        /// Inference cores by number, from 0; where there are fewer on the machine, they are counted round.
        cores: Vec<u32>,
    },
    /// Say what instances there are and hold.
    Instances,
    /// Say what all processes took of the machine until now; what of it no [`Message::Lived`] told is told before.
    Machine,
    /// Hold a function's snapshot decoded in memory; taken first where there is none that fits.
    Park(RunnerSpec),
    /// Hold a function's snapshot on disk only. Instances that share its memory keep it.
    Store {
        /// The function.
        function: FunctionName,
    },
    /// Take a function's snapshot, whether or not there is one.
    SnapshotTake(RunnerSpec),
    /// Read a function's snapshot to its end, and say whether it is authentic and fits.
    SnapshotVerify(RunnerSpec),
    /// Say what snapshots there are.
    Snapshots,
    /// Say how much memory an instance needs, by the snapshot that fits.
    Needs(RunnerSpec),
    /// Remove a function's snapshot, from memory and disk; none is fine.
    SnapshotRemove {
        /// The function.
        function: FunctionName,
    },
    /// Read a model file from the descriptor that comes along, to its end, into the store.
    ModelAdd {
        /// What its SHA-256 must be, where that is known.
        expected: Option<ModelDigest>,
    },
    /// Say what models there are.
    Models,
    /// Remove a model; refused while an instance uses it.
    ModelRemove {
        /// The model.
        digest: ModelDigest,
    },
    /// Read an update bundle from the descriptor that comes along, to its end, into the slot that does not run.
    UpdateApply,
    /// Say what the slots have.
    UpdateStatus,
    /// Have the other slot started from the next start on.
    UpdateRollBack,
}

/// What an instance needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerSpec {
    /// Whose instance it is; names its cgroup, and logs.
    pub function: FunctionName,
    /// The model.
    pub model: ModelDigest,
    /// What the model is for.
    pub task: Task,
    /// Cap of private memory, bytes.
    pub memory_bytes: u64,
    /// What an instance reserves and is held to instead, where that was measured, bytes.
    pub reserved_bytes: Option<u64>,
    /// Cores it may use.
    pub cpus: u32,
    /// Tokens a sequence may hold.
    pub context_tokens: u32,
    /// Sequences at once.
    pub slots: u32,
    /// The function's system prompt.
    pub system: Option<String>,
}

impl RunnerSpec {
    /// What an instance may use of its own, bytes: what was measured, never more than the cap.
    pub fn lease_bytes(&self) -> u64 {
        self.reserved_bytes.map_or(self.memory_bytes, |reserved| reserved.min(self.memory_bytes))
    }
}

/// What the warden says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// The answer to a request.
    Reply {
        /// The request.
        id: u64,
        /// The answer.
        result: Result<Reply, WardenError>,
    },
    /// An instance is gone and cleaned up.
    Exited {
        /// The instance.
        instance: InstanceId,
        /// What ended it.
        cause: ExitCause,
    },
    /// A descriptor comes along, to read what an instance has used; one of each kind comes before its [`Awake`].
    Gauge {
        /// The instance.
        instance: InstanceId,
        /// What it tells.
        kind: GaugeKind,
    },
    /// What a process took of the machine, each µs of it in one of these: all of an instance's life, before its
    /// [`Message::Exited`]; or a part of one that no server ever had.
    Lived {
        /// Who took it.
        who: Liver,
        /// What it took.
        spent: Spent,
    },
    /// A snapshot could not be used and is no more; its function was, or will be, woken cold and gets another.
    SnapshotRetired {
        /// Whose it was.
        function: FunctionName,
        /// What was wrong with it.
        reason: String,
    },
}

/// Who took a part of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Liver {
    /// An instance that was awake, from its wake's call until nothing was left of it.
    Instance(InstanceId),
    /// A process that was never handed over.
    Own {
        /// Whose function it was of.
        function: FunctionName,
        /// What it was for.
        purpose: Purpose,
    },
}

/// What a process is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To be handed over; told of as a [`Liver::Own`] where it did not wake.
    Wake,
    /// To be measured and captured, and to end then.
    Capture,
    /// To try a snapshot.
    Trial,
    /// To be there before it is called for; from then on it is a wake's.
    Spare,
}

/// What was taken of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Time, µs.
    pub us: u64,
    /// CPU time, µs.
    pub cpu_us: u64,
    /// Memory reserved over time, byte·µs.
    pub reserved_byte_us: u128,
    /// Memory used over time, byte·µs: what was read last, over all of it; 0 for an instance, which the server reads.
    pub used_byte_us: u128,
}

impl Spent {
    /// Adds a part.
    pub fn add(&mut self, more: Self) {
        self.us += more.us;
        self.cpu_us += more.cpu_us;
        self.reserved_byte_us += more.reserved_byte_us;
        self.used_byte_us += more.used_byte_us;
    }
}

/// What a descriptor tells of an instance; a file of its cgroup, as the kernel writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GaugeKind {
    /// CPU time since it began.
    Cpu,
    /// Memory that it uses.
    Memory,
}

/// Answers, one a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Call::Wake`]; a descriptor comes along.
    Awake(Awake),
    /// To [`Call::Stop`].
    Stopped,
    /// To [`Call::Instances`].
    Instances(Vec<InstanceStatus>),
    /// To [`Call::Machine`], since the warden began: time and reserved memory by its own clock, CPU time by the kernel's count
    /// for all processes together, those that are gone included. Memory used is not known, and 0.
    Machine(Spent),
    /// To [`Call::Park`].
    Parked(SnapshotEntry),
    /// To [`Call::Store`].
    Stored,
    /// To [`Call::SnapshotTake`].
    SnapshotTaken(SnapshotEntry),
    /// To [`Call::SnapshotVerify`].
    SnapshotVerified(SnapshotEntry),
    /// To [`Call::Snapshots`], by name.
    Snapshots(Vec<SnapshotEntry>),
    /// To [`Call::Needs`]: bytes, as of [`SnapshotEntry::needs_bytes`]; none where there is no snapshot that fits.
    Needs(Option<u64>),
    /// To [`Call::SnapshotRemove`].
    SnapshotRemoved,
    /// To [`Call::ModelAdd`].
    ModelAdded(ModelEntry),
    /// To [`Call::Models`].
    Models(Vec<ModelEntry>),
    /// To [`Call::ModelRemove`].
    ModelRemoved,
    /// To [`Call::UpdateApply`], [`Call::UpdateStatus`] and [`Call::UpdateRollBack`].
    Updates(UpdateStatus),
}

/// An instance that is ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Awake {
    /// Its number.
    pub instance: InstanceId,
    /// Where the function was found.
    pub tier: Tier,
    /// From the call to the loaded model, µs.
    pub wake_us: u64,
    /// Where that time went.
    pub parts: WakeParts,
    /// CPU time that its process had used before the call, ahead of need, µs.
    pub cpu_before_us: u64,
    /// Threads that compute in it.
    pub threads: u32,
    /// What its function's parked memory takes, which its instances share; 0 while there is no snapshot.
    pub image_bytes: u64,
    /// What was loaded.
    pub model: ModelInfo,
}

/// The parts of a wake, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeParts {
    /// Until a snapshot was found and decoded, or there was none to be used, µs.
    pub find_us: u64,
    /// Until a process was there that holds no more than it may: restored, or with its model loaded, µs.
    pub process_us: u64,
    /// Until it was ready to be handed over: a spare taken over, threads started, or its snapshot taken, µs.
    pub ready_us: u64,
}

/// What an instance holds now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its number.
    pub instance: InstanceId,
    /// Whose it is.
    pub function: FunctionName,
    /// Memory of its own, bytes.
    pub private_bytes: u64,
    /// Memory it shares (weights in the page cache), bytes.
    pub shared_bytes: u64,
    /// CPU time used, µs.
    pub cpu_us: u64,
}

/// A function's snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    /// The function.
    pub function: FunctionName,
    /// Length of its file, bytes; 0 while it is in memory only.
    pub file_bytes: u64,
    /// Memory that it takes while it is parked, bytes; 0 when it is not.
    pub parked_bytes: u64,
    /// What an instance needs of its own before any request, as it was measured when this was taken, bytes; 0 where that
    /// cannot be read.
    pub needs_bytes: u64,
    /// Whether it was taken by this runner, on this kernel and CPU. One that was not is never used.
    pub current: bool,
}

/// A model in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// Its name.
    pub digest: ModelDigest,
    /// Its length.
    pub bytes: u64,
}

/// The appliance's slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// The slot that runs, where that is known.
    pub running: Option<String>,
    /// The version below which nothing is installed any more.
    pub floor: Option<String>,
    /// Why that is not known, and the version that runs stands for it.
    pub floor_fault: Option<String>,
    /// The slots, in the order in which they are tried.
    pub slots: Vec<SlotEntry>,
    /// Whether the machine starts again by itself once a slot was changed.
    pub restarts: bool,
}

/// A slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotEntry {
    /// Its letter.
    pub slot: String,
    /// Its version.
    pub version: String,
    /// How far it is trusted.
    pub state: SlotState,
}

/// How far a slot is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotState {
    /// It has worked.
    Trusted,
    /// It is tried.
    OnTrial {
        /// Trials left.
        left: u32,
    },
    /// It did not work, or was rolled back.
    GivenUp,
}

/// What ended an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCause {
    /// [`Call::Stop`].
    Stopped,
    /// It went past its memory limit and was killed.
    OutOfMemory {
        /// The limit, bytes.
        limit_bytes: u64,
    },
    /// A signal ended it.
    Signal(i32),
    /// It ended by itself.
    Exit(i32),
}

impl std::fmt::Display for ExitCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped => write!(f, "it was stopped"),
            Self::OutOfMemory { limit_bytes } => {
                write!(f, "it went past its memory limit of {} MiB; raise `limits.memory`", limit_bytes >> 20)
            }
            Self::Signal(signal) => write!(f, "it was ended by signal {signal}"),
            Self::Exit(code) => write!(f, "it ended with exit code {code}"),
        }
    }
}

/// Why the warden did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum WardenError {
    /// No such model in the store.
    #[error("model {digest} is not in the store; add it with `ember model add`")]
    ModelMissing {
        /// The model.
        digest: ModelDigest,
    },
    /// The file is not a usable GGUF.
    #[error("not a usable model: {reason}")]
    ModelInvalid {
        /// What is wrong with it.
        reason: String,
    },
    /// Instances run on it.
    #[error("model {digest} is in use by {instances} instances")]
    ModelInUse {
        /// The model.
        digest: ModelDigest,
        /// How many.
        instances: u32,
    },
    /// llama.cpp could not load it.
    #[error("the runner could not load the model: {reason}")]
    LoadFailed {
        /// The runner's own reason.
        reason: String,
    },
    /// The instance ended before its model was loaded.
    #[error("the instance ended while loading the model: {cause}")]
    DiedLoading {
        /// What ended it.
        cause: ExitCause,
    },
    /// Loading took too long.
    #[error("the model was not loaded within {limit_ms} ms")]
    LoadTimeout {
        /// The limit.
        limit_ms: u64,
    },
    /// A layer of the sandbox could not be set up. Nothing runs without it.
    #[error("sandbox layer `{layer}` failed: {reason}")]
    Sandbox {
        /// The layer.
        layer: String,
        /// What the kernel said.
        reason: String,
    },
    /// Too many instances.
    #[error("{limit} instances are up, which is the most")]
    InstancesMax {
        /// The most.
        limit: u32,
    },
    /// The function has no snapshot.
    #[error("function {function} has no snapshot; take one with `ember snapshot create {function}`")]
    SnapshotMissing {
        /// The function.
        function: FunctionName,
    },
    /// The snapshot is not to be used.
    #[error("the snapshot of {function} is not usable: {reason}")]
    SnapshotInvalid {
        /// The function.
        function: FunctionName,
        /// What is wrong with it.
        reason: String,
    },
    /// An instance could not be captured.
    #[error("no snapshot could be taken of {function}: {reason}")]
    CaptureFailed {
        /// The function.
        function: FunctionName,
        /// Why.
        reason: String,
    },
    /// No such instance.
    #[error("no instance {instance}")]
    InstanceMissing {
        /// The instance.
        instance: InstanceId,
    },
    /// Storage failed.
    #[error("{action}: {reason}")]
    Storage {
        /// What was attempted, with the path.
        action: String,
        /// What the kernel said.
        reason: String,
    },
    /// The bundle is not installed, and every slot is as it was.
    #[error("the update is refused: {reason}")]
    UpdateRefused {
        /// What is wrong with it.
        reason: String,
    },
    /// Ember did not boot this machine.
    #[error("this machine has no slots to update: Ember runs on it as a service, or its image has no update key")]
    NoSlots,
    /// The call made no sense.
    #[error("bad request to the warden: {reason}")]
    BadRequest {
        /// What was wrong.
        reason: String,
    },
}
