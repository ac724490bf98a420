//! Which of our endpoints a method and a path name. Pure; the one list of all of them.

use appliance_telemetry::Operation;
use appliance_ui::Asset;
use http::Method;

/// An endpoint, with what its path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'p> {
    /// `GET /health`; it needs no key.
    Health,
    /// `GET /openapi.yaml`; it needs no key.
    OpenApi,
    /// `GET /ca.pem`; it needs no key.
    Authority,
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completion,
    /// `POST /v1/embeddings`
    Embedding,
    /// `POST /tokenize`
    Tokenize,
    /// `POST /detokenize`
    Detokenize,
    /// `POST /apply-template`
    ApplyTemplate,
    /// A file of the dashboard; it needs no key.
    Asset(&'static Asset),
    /// `GET /metrics`
    Metrics,
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{id}`
    Model(&'p str),
    /// One of Ollama's.
    Ollama(Ollama),
    /// What a key may learn of itself.
    Own(Own<'p>),
    /// One of the operator's, which need an admin key.
    Admin(Admin<'p>),
}

impl Route<'_> {
    /// What it asks of a model.
    pub(super) const fn operation(&self) -> Operation {
        match self {
            Self::Chat | Self::Ollama(Ollama::Chat) => Operation::Chat,
            Self::Completion | Self::Ollama(Ollama::Generate) => Operation::TextCompletion,
            Self::Embedding | Self::Ollama(Ollama::Embed) => Operation::Embeddings,
            _ => Operation::Other,
        }
    }
}

/// Ollama's endpoints, below `/api`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ollama {
    /// `POST chat`
    Chat,
    /// `POST generate`
    Generate,
    /// `POST embed`
    Embed,
    /// `GET tags`
    Tags,
    /// `GET ps`
    Ps,
    /// `POST show`
    Show,
    /// `GET version`
    Version,
}

/// What every key may ask about itself, below `/ember/v1/key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own<'p> {
    /// `GET key`
    Key,
    /// `GET key/usage`
    Usage,
    /// `GET key/usage/records`
    UsageRecords,
    /// `GET key/usage/{request_id}`
    Explain(&'p str),
}

/// The operator's endpoints, below `/ember/v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admin<'p> {
    /// `GET functions`
    Functions,
    /// `GET functions/{name}`
    Function(&'p str),
    /// `PUT functions/{name}`
    Deploy(&'p str),
    /// `DELETE functions/{name}`
    Remove(&'p str),
    /// `POST functions/{name}/wake`
    Wake(&'p str),
    /// `POST functions/{name}/park`
    Park(&'p str),
    /// `POST functions/{name}/stop`
    Stop(&'p str),
    /// `GET snapshots`
    Snapshots,
    /// `POST functions/{name}/snapshot`
    TakeSnapshot(&'p str),
    /// `POST functions/{name}/snapshot/verify`
    VerifySnapshot(&'p str),
    /// `DELETE functions/{name}/snapshot`
    RemoveSnapshot(&'p str),
    /// `GET instances`
    Instances,
    /// `GET models`
    Stored,
    /// `PUT models`
    Upload,
    /// `DELETE models/{sha256}`
    Discard(&'p str),
    /// `GET keys`
    Keys,
    /// `POST keys`
    CreateKey,
    /// `DELETE keys/{name}`
    RevokeKey(&'p str),
    /// `GET budgets`
    Budgets,
    /// `PUT budgets/{kind}/{name}`
    SetBudget(&'p str, &'p str),
    /// `DELETE budgets/{kind}/{name}`
    RemoveBudget(&'p str, &'p str),
    /// `GET usage`
    Usage,
    /// `GET usage/records`
    UsageRecords,
    /// `GET usage/{request_id}`
    Explain(&'p str),
    /// `GET prices`
    Prices,
    /// `GET drain`
    Draining,
    /// `POST drain`
    Drain,
    /// `DELETE drain`
    Resume,
    /// `GET update`
    Slots,
    /// `PUT update`
    Update,
    /// `POST update/rollback`
    RollBack,
}

/// Why there is no route.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// Nothing has this path.
    Path,
    /// The path does not take this method, but these.
    Method(String),
}

/// Finds the endpoint of `method` at `path`.
pub(super) fn route<'p>(method: &Method, path: &'p str) -> Result<Route<'p>, Miss> {
    let mut segments = [""; 6];
    let mut count = 0;
    for segment in path.strip_prefix('/').ok_or(Miss::Path)?.split('/') {
        *segments.get_mut(count).ok_or(Miss::Path)? = segment;
        count += 1;
    }
    let offered = match segments[..count] {
        ["ember", "v1", "key", ref below @ ..] => own(below),
        ["ember", "v1", ref below @ ..] => admin(below),
        ref all => appliance_ui::find(path).map(Offered::asset).or_else(|| public(all)),
    };
    let offered = offered.ok_or(Miss::Path)?;
    match offered.0.iter().flatten().find(|(offers, _)| offers == method) {
        Some((_, route)) => Ok(*route),
        None => Err(Miss::Method(offered.methods())),
    }
}

/// The methods that one path takes.
struct Offered<'p>([Option<(Method, Route<'p>)>; 3]);

impl<'p> Offered<'p> {
    fn methods(&self) -> String {
        let methods: Vec<_> = self.0.iter().flatten().map(|(method, _)| method.as_str()).collect();
        methods.join(", ")
    }

    fn get(route: Route<'p>) -> Self {
        Self([Some((Method::GET, route)), None, None])
    }

    fn asset(asset: &'static Asset) -> Self {
        Self::get(Route::Asset(asset)).and(Method::HEAD, Route::Asset(asset))
    }

    fn post(route: Route<'p>) -> Self {
        Self([Some((Method::POST, route)), None, None])
    }

    fn delete(route: Route<'p>) -> Self {
        Self([Some((Method::DELETE, route)), None, None])
    }

    fn and(mut self, method: Method, route: Route<'p>) -> Self {
        let free = self.0.iter_mut().find(|offer| offer.is_none());
        *free.expect("no path takes more than three methods") = Some((method, route));
        self
    }
}

fn public<'p>(segments: &[&'p str]) -> Option<Offered<'p>> {
    Some(match *segments {
        ["health"] => Offered::get(Route::Health),
        ["metrics"] => Offered::get(Route::Metrics),
        ["openapi.yaml"] => Offered::get(Route::OpenApi),
        ["ca.pem"] => Offered::get(Route::Authority),
        ["v1", "chat", "completions"] => Offered::post(Route::Chat),
        ["v1", "completions"] => Offered::post(Route::Completion),
        ["v1", "embeddings"] => Offered::post(Route::Embedding),
        ["v1", "models"] => Offered::get(Route::Models),
        ["v1", "models", id] => Offered::get(Route::Model(id)),
        ["tokenize"] => Offered::post(Route::Tokenize),
        ["detokenize"] => Offered::post(Route::Detokenize),
        ["apply-template"] => Offered::post(Route::ApplyTemplate),
        ["api", name] => return ollama(name),
        _ => return None,
    })
}

fn ollama<'p>(name: &str) -> Option<Offered<'p>> {
    let route = Route::Ollama;
    Some(match name {
        "chat" => Offered::post(route(Ollama::Chat)),
        "generate" => Offered::post(route(Ollama::Generate)),
        "embed" => Offered::post(route(Ollama::Embed)),
        "tags" => Offered::get(route(Ollama::Tags)),
        "ps" => Offered::get(route(Ollama::Ps)),
        "show" => Offered::post(route(Ollama::Show)),
        "version" => Offered::get(route(Ollama::Version)),
        _ => return None,
    })
}

fn own<'p>(segments: &[&'p str]) -> Option<Offered<'p>> {
    Some(Offered::get(Route::Own(match *segments {
        [] => Own::Key,
        ["usage"] => Own::Usage,
        ["usage", "records"] => Own::UsageRecords,
        ["usage", id] => Own::Explain(id),
        _ => return None,
    })))
}

fn admin<'p>(segments: &[&'p str]) -> Option<Offered<'p>> {
    use Admin::{
        Budgets, CreateKey, Deploy, Discard, Drain, Draining, Explain, Function, Functions, Instances, Keys, Park,
        Prices, Remove, RemoveBudget, RemoveSnapshot, Resume, RevokeKey, RollBack, SetBudget, Slots, Snapshots, Stop,
        Stored, TakeSnapshot, Update, Upload, Usage, UsageRecords, VerifySnapshot, Wake,
    };
    let route = Route::Admin;
    Some(match *segments {
        ["functions"] => Offered::get(route(Functions)),
        ["functions", name] => Offered::get(route(Function(name)))
            .and(Method::PUT, route(Deploy(name)))
            .and(Method::DELETE, route(Remove(name))),
        ["functions", name, "wake"] => Offered::post(route(Wake(name))),
        ["functions", name, "park"] => Offered::post(route(Park(name))),
        ["functions", name, "stop"] => Offered::post(route(Stop(name))),
        ["functions", name, "snapshot"] => {
            Offered::post(route(TakeSnapshot(name))).and(Method::DELETE, route(RemoveSnapshot(name)))
        }
        ["functions", name, "snapshot", "verify"] => Offered::post(route(VerifySnapshot(name))),
        ["snapshots"] => Offered::get(route(Snapshots)),
        ["instances"] => Offered::get(route(Instances)),
        ["models"] => Offered::get(route(Stored)).and(Method::PUT, route(Upload)),
        ["models", digest] => Offered::delete(route(Discard(digest))),
        ["keys"] => Offered::get(route(Keys)).and(Method::POST, route(CreateKey)),
        ["keys", name] => Offered::delete(route(RevokeKey(name))),
        ["budgets"] => Offered::get(route(Budgets)),
        ["budgets", kind, name] => {
            Offered::delete(route(RemoveBudget(kind, name))).and(Method::PUT, route(SetBudget(kind, name)))
        }
        ["usage"] => Offered::get(route(Usage)),
        ["usage", "records"] => Offered::get(route(UsageRecords)),
        ["usage", id] => Offered::get(route(Explain(id))),
        ["prices"] => Offered::get(route(Prices)),
        ["drain"] => Offered::get(route(Draining)).and(Method::POST, route(Drain)).and(Method::DELETE, route(Resume)),
        ["update"] => Offered::get(route(Slots)).and(Method::PUT, route(Update)),
        ["update", "rollback"] => Offered::post(route(RollBack)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{super::handler::OPENAPI, *};

    #[test]
    fn paths_and_methods_name_endpoints() {
        assert_eq!(route(&Method::GET, "/health"), Ok(Route::Health));
        assert_eq!(route(&Method::GET, "/metrics"), Ok(Route::Metrics));
        assert_eq!(route(&Method::POST, "/v1/chat/completions"), Ok(Route::Chat));
        assert_eq!(route(&Method::GET, "/v1/models/a"), Ok(Route::Model("a")));
        assert_eq!(route(&Method::POST, "/api/show"), Ok(Route::Ollama(Ollama::Show)));
        assert_eq!(route(&Method::GET, "/ember/v1/key"), Ok(Route::Own(Own::Key)));
        assert_eq!(route(&Method::GET, "/ember/v1/key/usage/req-1"), Ok(Route::Own(Own::Explain("req-1"))));
        for method in [Method::GET, Method::HEAD] {
            assert!(matches!(route(&method, "/"), Ok(Route::Asset(asset)) if asset.path == "/"), "{method}");
        }
        let deploy = Route::Admin(Admin::Deploy("a"));
        assert_eq!(route(&Method::PUT, "/ember/v1/functions/a"), Ok(deploy));
        for (method, path, admin) in [
            (Method::POST, "functions/a/park", Admin::Park("a")),
            (Method::POST, "functions/a/stop", Admin::Stop("a")),
            (Method::GET, "snapshots", Admin::Snapshots),
            (Method::PUT, "budgets/project/a", Admin::SetBudget("project", "a")),
            (Method::GET, "usage/records", Admin::UsageRecords),
            (Method::PUT, "update", Admin::Update),
            (Method::POST, "update/rollback", Admin::RollBack),
            (Method::GET, "usage/req-1", Admin::Explain("req-1")),
            (Method::GET, "prices", Admin::Prices),
            (Method::POST, "drain", Admin::Drain),
            (Method::DELETE, "drain", Admin::Resume),
            (Method::POST, "functions/a/snapshot", Admin::TakeSnapshot("a")),
            (Method::DELETE, "functions/a/snapshot", Admin::RemoveSnapshot("a")),
            (Method::POST, "functions/a/snapshot/verify", Admin::VerifySnapshot("a")),
        ] {
            assert_eq!(route(&method, &format!("/ember/v1/{path}")), Ok(Route::Admin(admin)), "{path}");
        }
    }

    /// The methods that docs/openapi.yaml has for each path: keys of two spaces, and below them of four.
    fn documented() -> Vec<(String, String)> {
        let paths =
            OPENAPI.split_once("\npaths:\n").and_then(|(_, rest)| rest.split_once("\ncomponents:\n")).unwrap().0;
        let (mut path, mut all) = (String::new(), Vec::new());
        for line in paths.lines() {
            match line.strip_prefix("    ").filter(|line| !line.starts_with(' ')) {
                Some(method) => all.push((method.trim_end_matches(':').to_uppercase(), path.clone())),
                None if line.starts_with("  /") => path = line.trim().trim_end_matches(':').to_owned(),
                None => {}
            }
        }
        all
    }

    #[test]
    fn what_is_documented_is_answered() {
        let all = documented();
        assert!(all.len() > 40, "{all:?}");
        for (method, path) in all {
            let method: Method = method.parse().unwrap();
            assert!(route(&method, &path).is_ok(), "{method} {path} is documented and not answered");
        }
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_a_wrong_method() {
        for path in [
            "",
            "//",
            "/ui",
            "/ui/",
            "/ui/../",
            "/index.html",
            "/ember/v1/key/usage/a/b",
            "x",
            "/v1",
            "/v1/models/a/b",
            "/health/",
            "//health",
            "/ember/v1/functions/a/b/c/d",
            "*",
        ] {
            assert_eq!(route(&Method::GET, path), Err(Miss::Path), "{path}");
        }
        assert_eq!(route(&Method::POST, "/api/tags"), Err(Miss::Method("GET".to_owned())));
        assert_eq!(route(&Method::POST, "/"), Err(Miss::Method("GET, HEAD".to_owned())));
        assert_eq!(route(&Method::POST, "/api/pull"), Err(Miss::Path));
        assert_eq!(route(&Method::GET, "/v1/completions"), Err(Miss::Method("POST".to_owned())));
        let snapshot = Miss::Method("POST, DELETE".to_owned());
        assert_eq!(route(&Method::GET, "/ember/v1/functions/a/snapshot"), Err(snapshot));
        let functions = Miss::Method("GET, PUT, DELETE".to_owned());
        assert_eq!(route(&Method::PATCH, "/ember/v1/functions/a"), Err(functions));
    }
}
