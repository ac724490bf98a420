//! The store of models, which is the warden's: bytes go from a request to a socket that the warden reads.

use super::{
    body,
    handler::Call,
    reply::{self, Answered},
};
use appliance_api::ApiError;
use appliance_edge::{Request, RequestBody};
use appliance_runtime::UnixStream;
use appliance_types::{FunctionName, ModelDigest};
use futures_lite::{AsyncWriteExt, future};
use http::HeaderMap;
use sandbox_kernel::socket::stream_pair;
use sandbox_wire::warden::{Call as WardenCall, ModelEntry, Reply as WardenReply, WardenError};
use serde_json::json;

/// Longest model: the warden looks for room on the disk, this only bounds what is counted.
const MODEL_BYTES_MAX: usize = 1 << 42;
/// What the model's SHA-256 must be.
const DIGEST_HEADER: &str = "x-ember-sha256";

/// `GET /ember/v1/models`
pub(super) async fn list(call: &Call) -> Answered {
    let all = call.state.functions.all();
    let rows = stored(call).await?.into_iter().map(|ModelEntry { digest, bytes }| {
        let users: Vec<_> =
            all.values().filter(|function| function.model == digest).map(|function| &function.manifest.name).collect();
        json!({ "sha256": digest, "bytes": bytes, "functions": users })
    });
    Ok(reply::list(&rows.collect::<Vec<_>>()))
}

/// `PUT /ember/v1/models`: the body is a GGUF file.
pub(super) async fn upload(call: &Call, request: Request) -> Answered {
    let expected = digest_header(&request.head.headers)?;
    let (ours, theirs) = stream_pair().map_err(|error| ApiError::unavailable(format!("no socket: {error}"), 1))?;
    let stored = call.state.warden.call(WardenCall::ModelAdd { expected }, Some(theirs));
    let sent = send(request.body.up_to(MODEL_BYTES_MAX), UnixStream::from_fd(ours));
    let (sent, stored) = future::zip(sent, stored).await;
    // A body that broke off has the warden see a short file: the cause counts, not what it made of it.
    sent?;
    match stored.map_err(refused)? {
        WardenReply::ModelAdded(ModelEntry { digest, bytes }) => {
            tracing::info!(%digest, bytes, "model stored");
            Ok(reply::json(&json!({ "sha256": digest, "bytes": bytes })))
        }
        _ => Err(out_of_place()),
    }
}

/// `DELETE /ember/v1/models/{sha256}`
pub(super) async fn discard(call: &Call, digest: &str) -> Answered {
    let digest: ModelDigest =
        digest.parse().map_err(|error| ApiError::not_found(format!("no model `{digest}`: {error}")))?;
    let all = call.state.functions.all();
    let users: Vec<_> =
        all.values().filter(|f| f.model == digest).map(|f| FunctionName::as_str(&f.manifest.name)).collect();
    if !users.is_empty() {
        let users = users.join("`, `");
        return Err(ApiError::conflict(format!(
            "model {digest} is in use by `{users}`; remove that first (`ember rm`)"
        )));
    }
    match call.state.warden.call(WardenCall::ModelRemove { digest }, None).await {
        Ok(_) => Ok(reply::nothing()),
        Err(error @ WardenError::ModelMissing { .. }) => Err(ApiError::not_found(error.to_string())),
        Err(error) => Err(refused(error)),
    }
}

/// The models there are.
pub(super) async fn stored(call: &Call) -> Result<Vec<ModelEntry>, ApiError> {
    match call.state.warden.call(WardenCall::Models, None).await.map_err(refused)? {
        WardenReply::Models(models) => Ok(models),
        _ => Err(out_of_place()),
    }
}

/// What an operator is told whom the warden refuses.
pub(super) fn refused(error: WardenError) -> ApiError {
    let message = error.to_string();
    match error {
        WardenError::ModelMissing { .. }
        | WardenError::ModelInvalid { .. }
        | WardenError::LoadFailed { .. }
        | WardenError::DiedLoading { .. }
        | WardenError::LoadTimeout { .. } => ApiError::unprocessable(message),
        WardenError::UpdateRefused { .. } => ApiError::unprocessable(message),
        WardenError::ModelInUse { .. } | WardenError::SnapshotInvalid { .. } | WardenError::NoSlots => {
            ApiError::conflict(message)
        }
        WardenError::InstanceMissing { .. } | WardenError::SnapshotMissing { .. } => ApiError::not_found(message),
        WardenError::Storage { .. } | WardenError::CaptureFailed { .. } => ApiError::internal(message),
        WardenError::InstancesMax { .. } | WardenError::Sandbox { .. } | WardenError::BadRequest { .. } => {
            ApiError::unavailable(message, 1)
        }
    }
}

/// A warden that answers with what was not asked for.
pub(super) fn out_of_place() -> ApiError {
    ApiError::internal("the warden answered out of place")
}

/// Copies a body to the warden, in step with it. The warden that reads no more has said why in its answer.
pub(super) async fn send(mut body: RequestBody, mut to: UnixStream) -> Result<(), ApiError> {
    while let Some(chunk) = body.chunk().await {
        let chunk = chunk.map_err(body::refused)?;
        if to.write_all(&chunk).await.is_err() {
            return Ok(());
        }
    }
    // The end of the file; the warden may be gone already.
    let _ = to.close().await;
    Ok(())
}

fn digest_header(headers: &HeaderMap) -> Result<Option<ModelDigest>, ApiError> {
    let Some(value) = headers.get(DIGEST_HEADER) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let digest = text.parse().map_err(|error| ApiError::invalid_request(format!("header {DIGEST_HEADER}: {error}")));
    digest.map(Some)
}
