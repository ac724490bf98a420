//! A request from its head to its reply: who asks, for what, and who answers.

use super::{
    allowance::{self, Allowance},
    assets, budgets,
    desk::{Desk, Meter},
    drain,
    functions::{self, Function},
    inference, instances, keys,
    meter::Account,
    metrics, models, ollama,
    purse::{Purse, Tokens},
    reply::{self, Answered, Reply},
    route::{Admin, Miss, Ollama, Own, Route, route},
    snapshots,
    state::State,
    terms::Asked,
    updates,
    urgency::Urgency,
    usage::{self, Whose},
};
use appliance_api::{ApiError, Dialect, Head};
use appliance_edge::{Failure, Handler, ReplyBody, Request};
use appliance_keys::Caller;
use appliance_telemetry::{Operation, Shard};
use appliance_types::RequestId;
use http::{HeaderMap, HeaderValue, Method, header};
use sandbox_wire::runner::Tenant;
use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// What is answered, for programs to read.
pub(super) const OPENAPI: &str = include_str!("../../../../docs/openapi.yaml");
const CONTENT_TYPE_YAML: &str = "application/yaml";
const CONTENT_TYPE_PEM: &str = "application/x-pem-file";

/// Answers requests on one core.
pub(super) struct Server {
    state: Arc<State>,
    desk: Rc<Desk>,
    /// Where this core counts.
    shard: Shard,
    urgency: RefCell<Urgency>,
}

/// One request of a known caller.
pub(super) struct Call {
    pub(super) state: Arc<State>,
    desk: Rc<Desk>,
    pub(super) id: RequestId,
    pub(super) caller: Caller,
    pub(super) tenant: Tenant,
    pub(super) asked: Asked,
    operation: Operation,
    pub(super) came: Instant,
    pub(super) came_unix_s: u64,
}

impl Server {
    pub(super) fn new(state: Arc<State>, desk: Rc<Desk>, urgency: Urgency) -> Self {
        let shard = desk.shard();
        Self { state, desk, shard, urgency: RefCell::new(urgency) }
    }

    async fn answer(&self, id: RequestId, request: Request) -> Answered {
        let path = request.head.uri.path().to_owned();
        let route = match route(&request.head.method, &path) {
            Ok(Route::Health) => return Ok(reply::json(&serde_json::json!({ "status": "ok" }))),
            Ok(Route::OpenApi) => return Ok(reply::with_type(CONTENT_TYPE_YAML, ReplyBody::Full(OPENAPI.into()))),
            Ok(Route::Authority) => {
                let pem = self.state.authority_pem.load_full();
                return Ok(reply::with_type(CONTENT_TYPE_PEM, ReplyBody::Full(pem.as_bytes().to_vec().into())));
            }
            Ok(Route::Asset(asset)) => return Ok(assets::reply(asset, &request.head)),
            found => found,
        };
        let (caller, tenant) = authenticate(&self.state, &request.head.headers)?;
        let route = match route {
            Ok(route) => route,
            Err(miss) => return self.missed(miss, &request.head.method, &path),
        };
        let came = Instant::now();
        let asked = Asked::read(&request.head.headers, came)?;
        let (state, desk) = (Arc::clone(&self.state), Rc::clone(&self.desk));
        let (operation, came_unix_s) = (route.operation(), unix_s());
        let call = Call { state, desk, id, caller, tenant, asked, operation, came, came_unix_s };
        let dialect = Dialect::of_path(&path);
        let mut reply = call.answer(route, request).await.unwrap_or_else(|error| self.refused(id, dialect, &error));
        allowance::show(&mut reply, call.caller.limiter.as_deref());
        Ok(reply)
    }

    fn refused(&self, id: RequestId, dialect: Dialect, error: &ApiError) -> Reply {
        tracing::debug!(%id, %error, "refused");
        self.shard.refused(error.counted_as());
        reply::error(dialect, error)
    }

    fn missed(&self, miss: Miss, method: &Method, path: &str) -> Answered {
        match miss {
            Miss::Path => Err(ApiError::unknown_url(method.as_str(), path)),
            Miss::Method(allowed) => {
                let error = ApiError::method_not_allowed(method.as_str(), path, &allowed);
                self.shard.refused(error.counted_as());
                let mut reply = reply::error(Dialect::of_path(path), &error);
                let allowed = HeaderValue::from_str(&allowed).expect("names of methods");
                reply.headers_mut().insert(header::ALLOW, allowed);
                Ok(reply)
            }
        }
    }
}

impl Handler for Server {
    async fn call(self: Rc<Self>, request: Request) -> Reply {
        let (id, came) = (RequestId::from_random(random()), Instant::now());
        let dialect = Dialect::of_path(request.head.uri.path());
        let mut reply = self.answer(id, request).await.unwrap_or_else(|error| self.refused(id, dialect, &error));
        reply::set(&mut reply, "x-request-id", &id.to_string());
        if reply.status().as_u16() >= 400 {
            // From a head that was read to a reply that is to be written: what a refusal took here, and not on its way.
            let ms = came.elapsed().as_secs_f64() * 1000.0;
            reply::set(&mut reply, "server-timing", &format!("total;dur={ms:.3}"));
        }
        reply
    }

    fn tick(&self) {
        self.urgency.borrow_mut().look();
    }

    fn failure(&self, failure: Failure) -> Reply {
        let error = refused_head(failure);
        self.shard.refused(error.counted_as());
        reply::error(Dialect::OpenAi, &error)
    }
}

impl Call {
    async fn answer(&self, route: Route<'_>, request: Request) -> Answered {
        match route {
            Route::Health | Route::OpenApi | Route::Authority | Route::Asset(_) => {
                unreachable!("answered without a key")
            }
            Route::Chat => inference::chat(self, request).await,
            Route::Completion => inference::completion(self, request).await,
            Route::Embedding => inference::embedding(self, request).await,
            Route::Tokenize => inference::tokenize(self, request).await,
            Route::Detokenize => inference::detokenize(self, request).await,
            Route::ApplyTemplate => inference::apply_template(self, request).await,
            Route::Metrics => metrics::page(self, &request).await,
            Route::Models => Ok(functions::as_models(self)),
            Route::Model(id) => functions::as_model(self, id),
            Route::Ollama(Ollama::Chat) => inference::ollama_chat(self, request).await,
            Route::Ollama(Ollama::Generate) => inference::ollama_generate(self, request).await,
            Route::Ollama(Ollama::Embed) => inference::ollama_embed(self, request).await,
            Route::Ollama(Ollama::Tags) => ollama::tags(self).await,
            Route::Ollama(Ollama::Ps) => ollama::ps(self).await,
            Route::Ollama(Ollama::Show) => ollama::show(self, request).await,
            Route::Ollama(Ollama::Version) => Ok(ollama::version()),
            Route::Own(own) => about_itself(self, own, request).await,
            Route::Admin(admin) => operate(self, admin, request).await,
        }
    }

    /// The function that is called `name`, if this key may call it.
    ///
    /// # Errors
    /// 404 or 403.
    pub(super) fn function(&self, name: &str) -> Result<Arc<Function>, ApiError> {
        let function = self.state.functions.get(name).ok_or_else(|| ApiError::model_not_found(name))?;
        if !self.caller.key.may_call(&function.manifest.name) {
            let key = &self.caller.key.name;
            return Err(ApiError::permission(format!("the key `{key}` may not call `{name}`")));
        }
        Ok(function)
    }

    /// The function that is called `name`; without one the only function there is for this key.
    ///
    /// # Errors
    /// 404, 403, or 400 when there are several.
    pub(super) fn function_or_only(&self, name: Option<&str>) -> Result<Arc<Function>, ApiError> {
        if let Some(name) = name {
            return self.function(name);
        }
        let all = self.state.functions.all();
        let mut mine = all.values().filter(|function| self.caller.key.may_call(&function.manifest.name));
        match (mine.next(), mine.next()) {
            (Some(only), None) => Ok(Arc::clone(only)),
            (None, _) => Err(ApiError::model_not_found("")),
            _ => Err(ApiError::invalid_param("model", "`model`: there are several functions; say which")),
        }
    }

    /// Opens the account of this request.
    ///
    /// # Errors
    /// 503: the ledger lags behind.
    pub(super) async fn meter(&self, function: &Function, bytes_in: usize) -> Result<Meter, ApiError> {
        let (state, manifest) = (&*self.state, &function.manifest);
        let context_tokens = manifest.limits.context_tokens;
        let account = Account::new(state, self.id, &self.caller.key, &manifest.name, context_tokens, bytes_in);
        self.desk.open(account.of_class(self.asked.class()).of_operation(self.operation)).await
    }

    /// Has the key's limits say whether it may go on, using `tokens` at most, and all budgets, paying for `most`.
    ///
    /// # Errors
    /// 429.
    pub(super) fn allow(
        &self,
        meter: &mut Meter,
        function: &Function,
        tokens: u32,
        most: Tokens,
    ) -> Result<(), ApiError> {
        let allowance = meter.check(Allowance::ask(&self.caller, tokens))?;
        meter.allowed(allowance);
        let purse = Purse::ask(self, function, &meter.prices(), most);
        let purse = meter.check(purse)?;
        meter.afforded(purse);
        Ok(())
    }

    /// What its reply begins with.
    pub(super) fn head<'f>(&self, function: &'f Function) -> Head<'f> {
        Head { request: self.id, created_unix_s: self.came_unix_s, model: function.manifest.name.as_str() }
    }
}

/// What is told where no handler answered.
pub(super) fn refused_head(failure: Failure) -> ApiError {
    match failure {
        Failure::Panicked => ApiError::internal("a fault of ours; the log says more").because("panicked"),
        Failure::Head(fault) => {
            ApiError::invalid_request(format!("the request's head is refused: {fault}")).because("head")
        }
    }
}

/// Random bits of the kernel's.
pub(super) fn random() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes once it has booted");
    u128::from_ne_bytes(bytes)
}

/// Seconds since the Unix epoch.
pub(super) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Milliseconds since the Unix epoch.
pub(super) fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

async fn about_itself(call: &Call, own: Own<'_>, request: Request) -> Answered {
    let turn = || call.state.own_questions.begin();
    let query = request.head.uri.query();
    match own {
        Own::Key => Ok(keys::own(call)),
        Own::Usage => {
            let _turn = turn()?;
            usage::sums(call, Whose::Callers, query).await
        }
        Own::UsageRecords => {
            let _turn = turn()?;
            usage::records(call, Whose::Callers, query).await
        }
        Own::Explain(id) => {
            let _turn = turn()?;
            usage::explain(call, Whose::Callers, id).await
        }
    }
}

async fn operate(call: &Call, admin: Admin<'_>, request: Request) -> Answered {
    if !call.caller.key.is_admin() {
        return Err(ApiError::permission(format!("the key `{}` is no admin key", call.caller.key.name)));
    }
    match admin {
        Admin::Functions => functions::list(call).await,
        Admin::Function(name) => functions::show(call, name).await,
        Admin::Deploy(name) => functions::deploy(call, name, request).await,
        Admin::Remove(name) => functions::remove(call, name).await,
        Admin::Wake(name) => instances::wake(call, name).await,
        Admin::Park(name) => instances::park(call, name).await,
        Admin::Stop(name) => instances::stop(call, name).await,
        Admin::Snapshots => snapshots::list(call).await,
        Admin::TakeSnapshot(name) => snapshots::create(call, name).await,
        Admin::VerifySnapshot(name) => snapshots::verify(call, name).await,
        Admin::RemoveSnapshot(name) => snapshots::remove(call, name).await,
        Admin::Instances => instances::list(call).await,
        Admin::Stored => models::list(call).await,
        Admin::Upload => models::upload(call, request).await,
        Admin::Discard(digest) => models::discard(call, digest).await,
        Admin::Keys => Ok(reply::list(&call.state.keys.list())),
        Admin::CreateKey => keys::create(call, request).await,
        Admin::RevokeKey(name) => keys::revoke(call, name).await,
        Admin::Budgets => budgets::list(call),
        Admin::SetBudget(kind, name) => budgets::set(call, kind, name, request).await,
        Admin::RemoveBudget(kind, name) => budgets::remove(call, kind, name).await,
        Admin::Usage => usage::sums(call, Whose::Everybody, request.head.uri.query()).await,
        Admin::UsageRecords => usage::records(call, Whose::Everybody, request.head.uri.query()).await,
        Admin::Explain(id) => usage::explain(call, Whose::Everybody, id).await,
        Admin::Prices => Ok(usage::prices(call)),
        Admin::Draining => drain::show(call).await,
        Admin::Drain => drain::begin(call).await,
        Admin::Resume => drain::end(call).await,
        Admin::Slots => updates::status(call).await,
        Admin::Update => updates::apply(call, request).await,
        Admin::RollBack => updates::roll_back(call).await,
    }
}

fn authenticate(state: &State, headers: &HeaderMap) -> Result<(Caller, Tenant), ApiError> {
    let missing = || ApiError::authentication("no API key; send `Authorization: Bearer KEY`");
    let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
    let presented = value.to_str().ok().and_then(bearer).ok_or_else(missing)?;
    let key = state.keys.authenticate(presented).map_err(|error| ApiError::authentication(error.to_string()))?;
    Ok((key, state.tenants.of(presented)))
}

/// The token of an `Authorization: Bearer` header; the scheme's case does not matter.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_found() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc "), Some("abc"));
        for none in ["", "abc", "Basic abc", "Bearerabc", "Bearer ", "Bearer"] {
            assert_eq!(bearer(none), None, "{none}");
        }
    }
}
